"""Self-checking exercises: a verdict and, until the answer is right, a hint; never the answer."""

from collections.abc import Callable
from typing import Any

from IPython.display import Markdown


def check(exercise: int, answer: Any, right: Callable[[Any], bool], hint: str) -> Markdown:
    """Say whether ``right(answer)``; ``None`` means that nothing was answered yet.

    An answer that ``right`` cannot even evaluate counts as not right yet: the hint is shown, and what went wrong.
    """
    if answer is None:
        return Markdown(f"**Exercise {exercise}**: no answer yet.")
    try:
        if right(answer):
            return Markdown(f"**Exercise {exercise}**: right.")
        trouble = ""
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        trouble = f" (The check could not use it: {error}.)"
    return Markdown(f"**Exercise {exercise}**: not yet. *Hint*: {hint}{trouble}")
