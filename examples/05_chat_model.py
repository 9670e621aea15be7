"""A reward-guided search in the place of a chat model: `prompt | guided | parser` over a picture.

Run with:  python examples/05_chat_model.py
"""

import base64
import io

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from vprm_search import BeamSearch, GuidedChatModel, TransformersScorer
from vprm_search.tiny import TinyChatModel, generate, render, weights_path


def main() -> tuple[str, str]:
    """Ask the policy alone, then the search; return both answers."""
    problem = generate("tiles", "test", 4)
    file = io.BytesIO()
    render(problem).save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()

    image = {"type": "image", "base64": "{picture}", "mime_type": "image/png"}
    prompt = ChatPromptTemplate.from_messages(
        [("human", [image, {"type": "text", "text": "{question}"}])]
    )
    policy = TinyChatModel()  # or ChatOpenAI(...), or any other LangChain chat model
    scorer = TransformersScorer.from_pretrained(weights_path("prm"))
    guided = GuidedChatModel(policy=policy, scorer=scorer, strategy=BeamSearch(width=4, expand=4))

    asked = {"picture": picture, "question": problem.question}
    alone = (prompt | policy | StrOutputParser()).invoke(asked)
    found = (prompt | guided | StrOutputParser()).invoke(asked)
    print(f"{problem.question}\n\nalone:\n{alone}\n\nguided:\n{found}\n\nright: {problem.answer}")
    return alone, found


if __name__ == "__main__":
    main()
