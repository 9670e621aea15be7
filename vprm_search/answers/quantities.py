"""Units and words for numbers, as people write them; factors are exact fractions."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

# unit = factor and base units: spellings. Base units stand for themselves. A unit of another
# script is one of its spellings.
_TABLE = """
m = : meter metre metro mètre metri metern 米 公尺 метр метров метра м متر أمتار メートル 미터 मीटर
km = 1000 m: kilometer kilometre kilómetro kilomètre quilômetro chilometri kilometern
km = 1000 m: 千米 公里 км километр километров كم كيلومتر キロメートル 킬로미터 किमी किलोमीटर
dm = 1/10 m: decimeter decimetre 分米 дм
cm = 1/100 m: centimeter centimetre centímetro centimètre centimetri zentimeter zentimetern
cm = 1/100 m: 厘米 公分 釐米 см сантиметр сантиметров سم سنتيمتر センチ センチメートル 센티미터 सेमी
mm = 1/1000 m: millimeter millimetre milímetro millimètre millimetri 毫米 мм مم ミリメートル
μm = 1/1000000 m: micrometer micrometre micron um 微米 мкм
nm = 1/1000000000 m: nanometer nanometre 纳米 нм
in = 127/5000 m: inch inche 英寸
ft = 381/1250 m: foot feet 英尺
yd = 1143/1250 m: yard
mi = 201168/125 m: mile 英里
kg = : kilogram kilogramme kilo kilogramo kilogramm quilo quilograma chilogrammi
kg = : 千克 公斤 кг килограмм килограммов كغ كجم キログラム 킬로그램 किग्रा
g = 1/1000 kg: gram gramme gm gramo grama grammi gramm 克 г грамм граммов غرام グラム 그램 ग्राम
mg = 1/1000000 kg: milligram 毫克 мг
t = 1000 kg: tonne 吨
lb = 45359237/100000000 kg: lbs pound 磅
oz = 45359237/1600000000 kg: ounce
s = : second sec segundo seconde sekunde sekunden secondi 秒 с сек секунд секунды ثانية 초 सेकंड
ms = 1/1000 s: millisecond 毫秒 мс
min = 60 s: minute mins minuto minuten minuti 分钟 分鐘 мин минут минуты دقيقة 분 मिनट
h = 3600 s: hour hr hrs hora heure stunde stunden 小时 小時 ч час часов часа ساعة ساعات 時間 시간 घंटे
day = 86400 s: día dia jour tage tagen giorni 天 日 день дней дня
week = 604800 s: semana semaine woche wochen settimane 周 недель
month = : meses mois monate monaten mesi 月
year = : yr yrs años anos jahre jahren anni 年 лет год года
l = 1/1000 m^3: L liter litre litro litri 升 л лит литр литров لتر リットル 리터
ml = 1/1000000 m^3: mL milliliter millilitre cc 毫升 мл
cl = 1/100000 m^3: cL centiliter centilitre
dl = 1/10000 m^3: dL deciliter decilitre
ha = 10000 m^2: hectare 公顷
gal = 473176473/125000000000 m^3: gallon
N = kg m/s^2: newton 牛
kN = 1000 kg m/s^2: kilonewton
J = kg m^2/s^2: joule 焦耳 焦
kJ = 1000 kg m^2/s^2: kilojoule kj
W = kg m^2/s^3: watt 瓦
kW = 1000 kg m^2/s^3: kilowatt kw
MW = 1000000 kg m^2/s^3: megawatt
Pa = kg/m s^2: pascal pa
kPa = 1000 kg/m s^2: kilopascal kpa
Hz = /s: hertz hz
kHz = 1000 /s: kilohertz khz
A = : ampere amp amps
mA = 1/1000 A: milliampere
V = : volt 伏
kV = 1000 V: kilovolt
Ω = : ohm
C = : coulomb
K = : kelvin
mol = : mole
°C = : celsius ℃ 摄氏度
°F = : fahrenheit
° = : degree deg grado grad gradi grau degré 度 градус градусов градуса درجة 도
rad = : radian
$ = : dollar usd 美元 buck
cent = 1/100 $: ¢
€ = : euro eur 欧元
£ = : pounds_sterling gbp quid 英镑
¥ = : yuan yen rmb cny jpy 元 円 人民币
₹ = : rupee inr rs
mph = 201168/450000 m/s:
kmh = 5/18 m/s: kph kmph
% = : percent percentage pct パーセント 百分之
unit = : unit
pm = :
am = :
"""
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "кв": 2, "квадратных": 2, "куб": 3, "кубических": 3}
_POWERS_AFTER = {
    "squared": 2,
    "cubed": 3,
    "cuadrados": 2,
    "cúbicos": 3,
    "quadrados": 2,
    "carrés": 2,
}
_POWERS_WITHIN = {"平方": 2, "立方": 3, "평방": 2, "제곱": 2, "세제곱": 3, "quadrat": 2, "kubik": 3}
# Words behind a number that change it or make it an expression: not units.
_NOT_UNITS_NAMES = (
    "and or to by of in on at from with less more over plus minus times divided point half "
    "hundred thousand million billion trillion than is are sin cos tan log ln exp sqrt mod "
    "not no if then when for as the but where only right left out above below between"
)
_NOT_UNITS = frozenset(_NOT_UNITS_NAMES.split())

_SINGLE = frozenset("mgshlLNJWVAKCFt")
"""Single letters that are units behind a blank: "5 m"; others are variables."""
_GLUED = frozenset("mg")
"""Single letters that are units right behind a digit: "5m"; "4s" is rather four times a side s."""

# Vowel signs of Indic scripts are no letters for Python.
_WORD = r"(?:°\s?[CF]\b|[%°$€£¥₹Ω]|(?:[^\W\d_π]|[\u0900-\u0dff]){1,40}\.?)"
_ITEM = rf"{_WORD}(?:\^\{{?-?[1-9]\}}?|[23](?![0-9]))?"
SUFFIX = re.compile(rf"(?<![\\A-Za-z{{_^])(?P<unit>/?{_ITEM}(?: ?[/*] ?{_ITEM}| {_ITEM}){{0,5}})$")
_PART = re.compile(
    rf"(?P<op>[/*])|(?P<name>{_WORD})(?:\^\{{?(?P<power>-?[1-9])\}}?|(?P<glued>[23]))?"
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A product of base units: `factor` times them; `name` is how the unit itself is written."""

    factor: Fraction
    bases: tuple[tuple[str, int], ...]
    name: tuple[tuple[str, int], ...]


@lru_cache(maxsize=1)
def _units() -> dict[str, Unit]:
    """Return every spelling with its unit."""
    found: dict[str, Unit] = {}
    for line in _TABLE.strip().splitlines():
        head, _, spellings = line.partition(":")
        name, _, meaning = (part.strip() for part in head.partition("="))
        unit = Unit(Fraction(1), ((name, 1),), ((name, 1),))
        if meaning:
            factor = re.match(r"[0-9]+(?:/[0-9]+)?(?= )", meaning)
            of = _product(meaning[factor.end() if factor else 0 :].strip(), found)
            assert of is not None  # noqa: S101 the table above is well-formed
            unit = Unit(Fraction(factor[0] if factor else 1), of.bases, ((name, 1),))
        found |= dict.fromkeys((name, *spellings.split()), unit)
    return found


def _product(text: str, known: dict[str, Unit], *, only_known: bool = True) -> Unit | None:
    """Read "kg m/s^2" (what stands behind a slash is below it), or None."""
    factor, bases, name = Fraction(1), dict[str, int](), dict[str, int]()
    sign, raised, words = 1, 0, 0
    for match in _PART.finditer(re.sub(r"\bper\b|每", "/", text)):
        if match["op"]:
            sign = -1 if match["op"] == "/" else sign
            continue
        word, power = match["name"].rstrip("."), int(match["power"] or match["glued"] or 1)
        if word.casefold() in _POWERS:
            raised = _POWERS[word.casefold()]
            continue
        if after := _POWERS_AFTER.get(word.casefold()):  # metres squared
            if len(name) != 1:
                return None
            name = {unit: n * after for unit, n in name.items()}
            bases = {base: n * after for base, n in bases.items()}
            factor = factor**after
            continue
        unit = _word(word, known, only_known=only_known)
        if unit is None:
            return None
        times, raised, words = sign * power * (raised or 1), 0, words + 1
        factor *= unit.factor**times
        for table, part in ((bases, unit.bases), (name, unit.name)):
            for base, n in part:
                table[base] = table.get(base, 0) + n * times
    if not 1 <= words <= 4 or raised:
        return None
    return Unit(factor, _sorted(bases), _sorted(name))


def _sorted(powers: dict[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((base, power) for base, power in powers.items() if power))


def _word(word: str, known: dict[str, Unit], *, only_known: bool) -> Unit | None:
    word = word.replace(" ", "")
    small = word.casefold()
    for prefix, power in _POWERS_WITHIN.items():
        unit = known.get(small.removeprefix(prefix)) if small.startswith(prefix) else None
        if unit is not None:
            bases, name = ({b: n * power for b, n in part} for part in (unit.bases, unit.name))
            return Unit(unit.factor**power, _sorted(bases), _sorted(name))
    singular = small[:-1] if len(small) > 3 and small.endswith("s") and small[-2] != "s" else small
    folded = len(word) > 1 and not re.fullmatch("M[a-z]", word)  # Mg is not mg
    for spelling in (word, *((small, singular) if folded else ())):
        if spelling in known:
            return known[spelling]
    if only_known or small in _NOT_UNITS:
        return None
    if not word.isascii() or (len(word) > 2 and re.search(r"[aeiouy]", small)):
        return Unit(Fraction(1), ((singular, 1),), ((singular, 1),))  # apples
    return None


def read_unit(text: str, *, glued: bool, only_known: bool = False) -> Unit | None:
    """Read what stands behind a number: "cm^2", "km/h", "square feet", "apples", "厘米", "%".

    Args:
        text: the words.
        glued: whether they touch the number; then "5m" has a unit, but "4s" and "5xy" have none.
        only_known: whether nouns that are in no table ("apples") are refused.
    """
    text = re.sub(r"^US |(?<=[a-z]) old$", "", text)
    text = re.sub(r"^degrees? (?=celsius|fahrenheit)", "", text, flags=re.IGNORECASE)
    first = re.match(r"[^\W\d_]+", text)
    if first and len(first[0]) == 1 and first[0].isascii():
        allowed = _GLUED if glued and len(text) == 1 else _SINGLE
        if first[0] not in allowed:
            return None
    known_only = only_known or (glued and first is not None and first[0].isascii())
    return _product(text, _units(), only_known=known_only)


# --- numbers with units ---------------------------------------------------------------------------

_CURRENCY = re.compile(
    r"([-+]?)(?:US|C|A)?([$€£¥₹%])\s?([-+]?)(.+)|([-+]?)()()(?:USD|EUR|GBP|Rs\.?) ?(.+)"
)
_MONEY_NAMED = re.compile(r"\s?(?:dollars?|usd|euros?|pounds?|yen|rupees?)$", re.IGNORECASE)
_PLAIN = re.compile(r"[-+]?[0-9.]+(?:/[0-9.]+)?|[-+]?[0-9]+ [0-9]+/[0-9]+")
_COMPOUND = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([^\W\d_]+\.?)(?:,? and |, | |$)")


def split_quantity(text: str) -> tuple[str, Unit] | None:
    """Return number and unit of "12 cm", "25π cm²", "$5" or "1/2 kg", None for anything else."""
    money = _CURRENCY.fullmatch(text)
    if money is not None:
        sign, mark, second, rest = (
            group or "" for group in (money.groups()[:4] if money[2] else money.groups()[4:])
        )
        mark = mark or {"U": "$", "E": "€", "G": "£", "R": "₹"}[text.lstrip("+-")[0]]
        unit = read_unit(mark, glued=False)
        return (sign + second + _MONEY_NAMED.sub("", rest), unit) if unit else None
    match = SUFFIX.search(text)
    if match is None:
        return None
    glued = match.start() > 0 and text[match.start() - 1] != " "
    number = text[: match.start()].strip()
    unit = read_unit(
        match["unit"],
        glued=glued and len(match["unit"]) < 12,
        only_known=_PLAIN.fullmatch(number) is None,
    )
    if unit is None or re.search(r"(?<![\\A-Za-z])[A-Za-df-z](?![A-Za-z])", number):
        return None
    if match["unit"] == "°" and re.search("sin|cos|tan|cot|sec|csc", number):
        return None
    return number, unit


def compound_quantity(text: str) -> Unit | None:
    """Return what "2 h 30 min" or "5 feet and 3 inches" is as a unit, None for anything else."""
    parts = _COMPOUND.findall(text)
    if len(parts) < 2 or "".join(_COMPOUND.split(text)[::3]).strip():
        return None
    units = [read_unit(unit, glued=False, only_known=True) for _, unit in parts]
    known = [unit for unit in units if unit is not None]
    if len(known) < len(units) or len({unit.bases for unit in known}) > 1:
        return None
    factors = [unit.factor for unit in known]
    if factors != sorted(set(factors), reverse=True):
        return None
    sizes = (Fraction(number) * f for (number, _), f in zip(parts, factors, strict=True))
    return Unit(sum(sizes, Fraction(0)), known[0].bases, known[0].bases)


def spread_units(items: list[str]) -> list[str]:
    """Give the unit of the last number to the bare numbers before it: 5, 6 cm."""
    last = re.fullmatch(r"[-+]?[0-9.]+ ?((?!and|or)[^\W\d_]{2,}[^\d,]*|[%°])", items[-1].strip())
    if last is None or not all(_PLAIN.fullmatch(item.strip()) for item in items[:-1]):
        return items
    if read_unit(last[1], glued=False) is None:
        return items
    return [*(f"{item.strip()} {last[1]}" for item in items[:-1]), items[-1]]


# --- words for numbers ----------------------------------------------------------------------------

_UP_TO_NINETEEN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_FRACTIONS = "half third quarter fifth sixth seventh eighth ninth tenth"
_SMALL = {word: n for n, word in enumerate(_UP_TO_NINETEEN.split())}
_SMALL |= {word: 10 * n for n, word in enumerate(_TENS.split(), start=2)}
_LARGE = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_PARTS = {word: n for n, word in enumerate(_FRACTIONS.split(), start=2)}
_PARTS |= {f"{word}s": n for word, n in _PARTS.items()} | {"halves": 2, "fourth": 4, "fourths": 4}
_DIGITS_LARGE = re.compile(
    r"([-+]?[$€£¥₹]? ?[0-9]+(?:\.[0-9]+)?) (dozen|thousand|million|billion|trillion)\b"
)


def digits_for_words(text: str) -> str:
    """Write "twenty-five apples" as "25 apples", "one half" as "1/2", "5 million" as "5000000"."""
    match = _DIGITS_LARGE.match(text)
    if match is not None:
        digits = re.sub(r"[^-0-9.]", "", match[1])
        sign = "".join(re.findall(r"[$€£¥₹]", match[1]))
        return f"{sign}{_plain(Fraction(digits) * _LARGE[match[2]])}{text[match.end() :]}"
    words = text.casefold().replace("-", " ").split(" ")
    if words[0] in ("a", "an", "minus", "negative") and len(words) > 1:
        sign = "-" if words[0] in ("minus", "negative") else ""
        if words[1] in _SMALL and sign:
            return sign + digits_for_words(" ".join(words[1:]))
        words = ["one", *words[1:]] if not sign and words[1] in (*_LARGE, *_PARTS) else words
    if words[0] == "half" and words[1:2] in (["a"], ["an"]):
        return " ".join(["1/2", *words[2:]])
    if text.casefold() == "half":
        return "1/2"
    if len(text) == 1 and not text.isascii() and unicodedata.category(text) == "Lo":
        value = unicodedata.numeric(text, -1.0)
        return text if value < 0 else _plain(Fraction(value))  # 三
    if words[0] not in _SMALL:
        return text
    number, used = _counted(words)
    rest = words[used:]
    if rest and rest[0] in _SMALL:
        return text  # "two three" is no number
    if rest[:2] in (["and", "a"], ["and", "one"]) and rest[2:3] and rest[2] in _PARTS:
        return " ".join([f"{number} 1/{_PARTS[rest[2]]}", *rest[3:]])
    if rest and rest[0] in _PARTS:
        return " ".join([f"{number}/{_PARTS[rest[0]]}", *rest[1:]])
    return " ".join([str(number), *rest])


def _counted(words: list[str]) -> tuple[int, int]:
    """Return the number that words begin with, and how many words it has."""
    total = current = 0
    for used, word in enumerate(words):
        following = words[used + 1] if used + 1 < len(words) else ""
        if word in _SMALL:
            if current % 100 and not (
                current % 100 >= 20 and not current % 10 and _SMALL[word] < 10
            ):
                return total + current, used
            current += _SMALL[word]
        elif word == "hundred":
            current *= 100
        elif word in _LARGE:
            total, current = total + current * _LARGE[word], 0
        elif not (word == "and" and total + current >= 100 and following in _SMALL):
            return total + current, used
    return total + current, len(words)


def _plain(number: Fraction) -> str:
    return str(number) if number.denominator == 1 else str(float(number))
