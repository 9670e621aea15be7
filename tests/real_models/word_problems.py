"""Thirty plain word problems of our own with their answers, of many kinds of answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WordProblem:
    """A question and its right answer."""

    question: str
    answer: str


WORD_PROBLEMS = tuple(
    WordProblem(question, answer)
    for question, answer in (
        ("A box holds 12 pencils. How many pencils are in 7 boxes?", "84"),
        ("Lena has 45 stickers. She gives 18 to her brother. How many does she keep?", "27"),
        ("Three friends share 51 marbles equally. How many marbles does each of them get?", "17"),
        ("A train leaves at 9:40 and arrives at 12:15. How many minutes does it travel?", "155"),
        ("Apples cost $1.50 each. How much do 6 apples cost?", "$9"),
        ("A jacket costs $80. It is sold with 25% off. What is its new price?", "$60"),
        ("What is 15% of 240?", "36"),
        ("A car drives 180 km in 3 hours. What is its average speed?", "60 km/h"),
        ("A rectangle is 8 cm long and 5 cm wide. What is its area?", "40 cm^2"),
        ("The perimeter of a square is 36 m. How long is one side?", "9 m"),
        ("A recipe for 4 people needs 300 g of flour. How much flour do 10 people need?", "750 g"),
        ("Tom is 3 times as old as his sister, who is 7. How old will Tom be in 5 years?", "26"),
        ("In a class of 28 pupils, 3/4 can swim. How many pupils cannot swim?", "7"),
        ("What fraction of an hour are 25 minutes? Give it in lowest terms.", "5/12"),
        ("A tank holds 500 litres. It is filled at 20 litres a minute. "
         "After how many minutes is it full?", "25"),
        ("The sum of two numbers is 30, and their difference is 8. "
         "What is the larger number?", "19"),
        ("Solve for x: 5x - 7 = 3x + 9.", "x = 8"),
        ("A bag holds 3 red and 5 blue balls. One ball is drawn at random. "
         "What is the probability that it is red?", "3/8"),
        ("A shop sold 120 loaves on Monday and 150 on Tuesday. "
         "By how many percent did the sales grow?", "25%"),
        ("Five notebooks cost $12.50. How much do 8 notebooks cost?", "$20"),
        ("Today is Wednesday. Which day of the week is it in 10 days?", "Saturday"),
        ("Ana runs 400 m in 80 seconds and Ben runs 300 m in 50 seconds. "
         "Who runs faster?", "Ben"),
        ("Mia's test scores are 78, 85 and 92. What is her mean score?", "85"),
        ("A farmer has 14 animals, hens and cows, with 40 legs together. "
         "How many cows are there?", "6"),
        ("List all prime numbers between 10 and 20.", "11, 13, 17, 19"),
        ("The ratio of boys to girls in a choir is 2:3. There are 18 girls. "
         "How many children sing in the choir?", "30"),
        ("A phone battery loses 6% an hour. It starts full. "
         "How many percent are left after 7 hours?", "58%"),
        ("Which is larger, 5/8 or 3/5?\n(A) 5/8\n(B) 3/5\n(C) They are equal", "A"),
        ("How many edges does a cube have?\n(A) 6\n(B) 8\n(C) 10\n(D) 12", "D"),
        ("Is 91 a prime number? Answer yes or no.", "no"),
    )
)  # fmt: skip
