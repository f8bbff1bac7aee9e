"""Sources of samples made from the built-in emoji and from scenes of them.

Captions         a picture and its name (LLaVA stage 1: plain), or the question "What is this?" and the name
EmojiQuestions   several questions about one emoji, in ten languages
SceneQuestions   several questions about one scene
category_items, choice_items, scene_items   evaluation items with closed sets of options

What is asked, how it is worded and in which order options stand are functions of the sample's id and the seed. Sources
of trained splits never name a held-out concept: not as an answer, an option, a keyword or within a question.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from pydantic import Field

from sensorium.data import builtin_phrases as phrases
from sensorium.data.boxes import BOX_FORMATS, BoxFormat
from sensorium.data.builtin_items import category_items, choice_items, scene_items, with_shots
from sensorium.data.builtin_names import Names, draw, named_pictures, names
from sensorium.data.builtin_samples import Question, question_sample
from sensorium.data.builtin_scenes import FAMILY_LAYOUTS, ask_scene
from sensorium.data.emoji import Concept, EmojiPicture, Language, Split, pictures
from sensorium.data.scenes import ScenePicture, make_scene
from sensorium.data.source import SourceConfig
from sensorium.errors import UserError
from sensorium.sequence import Sample, Segment

__all__ = [
    "Captions",
    "EmojiQuestions",
    "SceneQuestions",
    "category_items",
    "choice_items",
    "scene_items",
    "with_shots",
]

EmojiFamily = Literal["caption", "keywords", "category", "choice_name", "choice_letter", "yes_no"]
SceneFamily = Literal["what", "count", "where", "relation", "yes_no", "bigger", "box", "refer", "text", "describe"]


class Captions(SourceConfig):
    """Every picture of a split with its name.

    plain        without roles and question, as LLaVA aligns its connector; otherwise a question in the same language
    holdout_dev  train: leave the dev slices out
    flags        with the country flags
    backgrounds  colours, one per sample
    wordings     what is written of a name, in plain samples: one per sample
    """

    split: Split = "train"
    language: Language = "en"
    plain: bool = True
    wordings: tuple[str, ...] = Field(default=("{name}",), min_length=1)
    holdout_dev: bool = False
    flags: bool = False
    backgrounds: tuple[str, ...] = Field(default=("white",), min_length=1)
    seed: int = 0

    def build(self) -> _Captions:
        return _Captions(self)


class _Captions:
    def __init__(self, config: Captions) -> None:
        self.config = config
        self.captions, self.rows = named_pictures(config.split, config.language, config.holdout_dev, config.flags)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        config, (member, artist) = self.config, self.rows[index]
        id = f"captions/{config.split}/{artist}/{member.key}/{config.language}"
        rng = draw(id, config.seed)
        picture = EmojiPicture(member.key, artist, rng.choice(config.backgrounds))
        answer = self.captions[member.key]
        question = rng.choice(phrases.CAPTION[config.language])
        info = {"key": member.key, "artist": artist, "split": config.split}
        if not config.plain:
            asked = Question("caption", question, answer, language=config.language)
            return question_sample(picture, [asked], id=id, source="captions", info=info)
        answer = rng.choice(config.wordings).format(name=answer)
        segments = (Segment("image", picture), Segment("text", answer))
        known = {"family": "caption", "answer": answer, "language": config.language}
        return Sample(segments, id=id, source="captions", info={**info, **known})


class EmojiQuestions(SourceConfig):
    """Several questions about every picture of a split.

    families   what is asked; None is everything but keywords
    languages  of questions and answers, drawn per question; categories are asked in English alone
    rounds     how often every picture comes, each time with other questions
    tags       task tag written before questions of a family, for example {"caption": "[caption]"}
    """

    split: Split = "train"
    questions_per_picture: int = Field(default=4, ge=1)
    families: tuple[EmojiFamily, ...] | None = Field(default=None, min_length=1)
    languages: tuple[Language, ...] = Field(default=("en",), min_length=1)
    rounds: int = Field(default=1, ge=1)
    holdout_dev: bool = False
    flags: bool = False
    backgrounds: tuple[str, ...] = Field(default=("white",), min_length=1)
    tags: dict[EmojiFamily, str] = Field(default={})
    seed: int = 0

    def build(self) -> _EmojiQuestions:
        """Raises UserError when nothing that is asked for can be asked in these languages."""
        return _EmojiQuestions(self)


class _EmojiQuestions:
    def __init__(self, config: EmojiQuestions) -> None:
        families = config.families or ("caption", "category", "choice_name", "choice_letter", "yes_no")
        self.config = config
        self.families = [family for family in families if family != "category" or "en" in config.languages]
        if not self.families:
            raise UserError(f"categories have English names only, languages is {config.languages}: add 'en'")
        self.names = {
            language: names(config.split, language, config.holdout_dev, config.flags) for language in config.languages
        }
        drawn = pictures(config.split, config.holdout_dev, config.flags)
        self.rows = [pair for pair in drawn if self._ask(pair[0], 1, random.Random(0))]

    def __len__(self) -> int:
        return len(self.rows) * self.config.rounds

    def __getitem__(self, index: int) -> Sample:
        config = self.config
        if not 0 <= index < len(self):
            raise IndexError(index)
        (member, artist), turn = self.rows[index % len(self.rows)], index // len(self.rows)
        id = f"emoji/{config.split}/{artist}/{member.key}/{turn}"
        rng = draw(id, config.seed)
        picture = EmojiPicture(member.key, artist, rng.choice(config.backgrounds))
        asked = self._ask(member, config.questions_per_picture, rng)
        info = {"key": member.key, "artist": artist, "split": config.split}
        return question_sample(picture, asked, id=id, source="emoji", info=info, tags=config.tags)

    def _ask(self, member: Concept, count: int, rng: random.Random) -> list[Question]:
        """Up to `count` different questions, families in turn; fewer when the concept does not bear as many."""
        asked: dict[str, Question] = {}
        idle = 0
        while len(asked) < count and idle < 8:
            before = len(asked)
            for family in rng.sample(self.families, len(self.families)):
                languages = ("en",) if family == "category" else self.config.languages
                speaking = [language for language in languages if member.key in self.names[language].captions]
                if len(asked) == count or not speaking:
                    continue
                language = rng.choice(speaking)
                one = _EMOJI[family](member, language, self.names[language], rng)
                if one is not None:
                    asked.setdefault(one.question, one)
            idle = idle + 1 if len(asked) == before else 0
        return list(asked.values())


def _caption(member: Concept, language: str, known: Names, rng: random.Random) -> Question | None:
    return Question("caption", rng.choice(phrases.CAPTION[language]), known.captions[member.key], (), language)


def _keywords(member: Concept, language: str, known: Names, rng: random.Random) -> Question | None:
    unwanted = known.forbidden | {known.captions[member.key].casefold()}
    words = [word for word in member.keywords[language] if word.casefold() not in unwanted and "," not in word]
    if len(words) < 3:
        return None
    detail = {"keywords": words}
    answer = ", ".join(rng.sample(words, 3))
    return Question("keywords", rng.choice(phrases.KEYWORDS[language]), answer, (), language, detail)


def _category(member: Concept, language: str, known: Names, rng: random.Random) -> Question | None:
    return Question("category", rng.choice(phrases.CATEGORY), phrases.category_name(member.category))


def _four(member: Concept, known: Names, rng: random.Random) -> list[str] | None:
    options = known.distractors(member, 3, rng)
    if len(options) < 3:
        return None
    options.append(known.captions[member.key])
    rng.shuffle(options)
    return options


def _choice_name(member: Concept, language: str, known: Names, rng: random.Random) -> Question | None:
    options = _four(member, known, rng)
    if options is None:
        return None
    question = rng.choice(phrases.CHOICE_NAME[language]).format(options=", ".join(options))
    return Question("choice_name", question, known.captions[member.key], tuple(options), language)


def _choice_letter(member: Concept, language: str, known: Names, rng: random.Random) -> Question | None:
    options = _four(member, known, rng)
    if options is None:
        return None
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options))
    question = rng.choice(phrases.CHOICE_LETTER[language]).format(options=listed)
    letter = "ABCD"[options.index(known.captions[member.key])]
    return Question("choice_letter", question, letter, tuple("ABCD"), language, {"names": options})


def _yes_no(member: Concept, language: str, known: Names, rng: random.Random) -> Question | None:
    others = known.distractors(member, 1, rng)
    if not others:
        return None
    true = rng.random() < 0.5
    name = known.captions[member.key] if true else others[0]
    words = phrases.YES_AND_NO[language]
    question = rng.choice(phrases.YES_NO[language]).format(name=name)
    return Question("yes_no", question, words[0 if true else 1], words, language, {"name": name})


_EMOJI: dict[str, Callable[[Concept, str, Names, random.Random], Question | None]] = {
    "caption": _caption,
    "keywords": _keywords,
    "category": _category,
    "choice_name": _choice_name,
    "choice_letter": _choice_letter,
    "yes_no": _yes_no,
}


class SceneQuestions(SourceConfig):
    """Up to `questions_per_picture` questions about each of `count` scenes, in English.

    Families come in turn (one named twice, twice as often) as the first question of a scene, whose layout is one that
    bears it; the further questions are drawn from what the scene bears. No two ask for the same fact.
    """

    split: Literal["train", "val_scene", "dev_scene"] = "train"
    count: int = Field(default=2000, ge=1)
    questions_per_picture: int = Field(default=3, ge=1)
    families: tuple[SceneFamily, ...] | None = Field(default=None, min_length=1)
    box_format: BoxFormat = "hundred"
    tags: dict[SceneFamily, str] = Field(default={})
    holdout_dev: bool = False
    seed: int = 0

    def build(self) -> _SceneQuestions:
        return _SceneQuestions(self)


class _SceneQuestions:
    def __init__(self, config: SceneQuestions) -> None:
        self.config = config
        self.families = config.families or tuple(FAMILY_LAYOUTS)

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Sample:
        config = self.config
        if not 0 <= index < len(self):
            raise IndexError(index)
        id = f"scenes/{config.split}/{config.seed}/{index}"
        rng = draw(id)
        first = self.families[index % len(self.families)]
        scene = make_scene(config.split, config.seed, index, rng.choice(FAMILY_LAYOUTS[first]), config.holdout_dev)
        others = [family for family in self.families if family != first]
        order = [first, *rng.sample(others, len(others))]
        names_known = names("train", "en", config.holdout_dev)
        write = BOX_FORMATS[config.box_format]
        asked: dict[tuple[str, str, str], Question] = {}
        for family in order * 3:
            if len(asked) == config.questions_per_picture:
                break
            one = ask_scene(scene, family, names_known, write, rng)
            if one is not None:
                asked.setdefault((family, one.answer, str(one.detail)), one)
        info = {"split": config.split, "layout": scene.layout}
        return question_sample(ScenePicture(scene), asked.values(), id=id, source="scenes", info=info, tags=config.tags)
