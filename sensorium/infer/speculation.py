"""Guesses at how an answer goes on, which a step of the model verifies: the same is said, sooner."""

from __future__ import annotations

from sensorium.infer.request import Request


class PromptLookup:
    """An answer that repeats its prompt or itself goes on as it went on there (prompt lookup: Saxena 2023; over a
    reference text: Yang et al. 2023, arXiv 2304.04487).

    longest, shortest  tokens of the end of the answer that are looked for, the longest first
    tokens             that are guessed at once
    """

    def __init__(self, longest: int = 4, shortest: int = 2, tokens: int = 6) -> None:
        if not 1 <= shortest <= longest or tokens < 1:
            raise ValueError(
                f"ends of {shortest} to {longest} tokens and {tokens} guessed ones: give at least 1 of each"
            )
        self.longest, self.shortest, self.tokens = longest, shortest, tokens

    def draft(self, request: Request) -> list[int]:
        said = [*request.words, *request.ids]
        for length in range(min(self.longest, len(said) - 1), self.shortest - 1, -1):
            end = said[-length:]
            for start in range(len(said) - length - 1, -1, -1):
                if said[start : start + length] == end:
                    return said[start + length :][: self.tokens]
        return []
