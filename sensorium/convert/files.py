"""What a published folder says beside its tensors: config.json, how pictures are prepared, the tokenizer.

A pipeline of diffusers is a folder of such folders: its model_index.json says which parts there are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensorium.convert.settings import Settings
from sensorium.tokenizer import Tokenizer

CONFIG, PICTURES, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
PIPELINE, SCHEDULER = "model_index.json", "scheduler_config.json"
CLIPS = "video_preprocessor_config.json"
WORDS, GENERATION = "tokenizer_config.json", "generation_config.json"
_NAMES = ("processor_class", "image_processor_type", "feature_extractor_type", "video_processor_type",
          "_valid_processor_keys")  # fmt: skip
"""Classes of other software."""


@dataclass(slots=True)
class Files:
    """A folder's settings, each to be asked field by field.

    config     config.json; of a pipeline, model_index.json
    pictures   of the image processor or the feature extractor of sounds (preprocessor_config.json, or a field of
               processor_config.json); without
               fields where the folder has none
    processor  what else processor_config.json says: how pictures and words come together
    tokenizer  None: the folder has none
    tensors    names of its tensors: some layouts say in no field which parts there are
    parts      of a pipeline, what is in each of its folders: config.json, or scheduler_config.json
    clips      of the processor of clips, where there is one of its own
    """

    folder: Path
    config: Settings
    pictures: Settings
    processor: Settings
    tokenizer: Tokenizer | None = None
    tensors: frozenset[str] = frozenset()
    parts: dict[str, Settings] = field(default_factory=dict)
    clips: Settings = field(default_factory=lambda: Settings({}))

    @classmethod
    def open(cls, folder: Path) -> Files:
        """Raises UserError for a file that cannot be read, or a config that asks for code of its own."""
        if (folder / PIPELINE).exists():
            config = Settings.load(folder / PIPELINE)
            return cls(folder, config, Settings({}), Settings({}), parts=_parts(config, folder))
        config = Settings.load(folder / CONFIG)
        processor = _json(folder / PROCESSOR)
        inner = [processor.pop(name, None) for name in ("image_processor", "feature_extractor")]
        pictures = next((one for one in inner if one), None) or _json(folder / PICTURES)
        clips = processor.pop("video_processor", None) or _json(folder / CLIPS)
        has_words = any((folder / name).exists() for name in ("tokenizer.json", WORDS))
        tokenizer = Tokenizer.load(folder) if has_words else None
        files = cls(folder, config, Settings(pictures, f"{folder / PICTURES}"),
                    Settings(processor, f"{folder / PROCESSOR}"), tokenizer,
                    clips=Settings(clips, f"{folder / CLIPS}"))  # fmt: skip
        files.pictures.skip(*_NAMES)
        files.clips.skip(*_NAMES)
        files.processor.skip(*_NAMES)
        return files

    def words(self) -> Tokenizer:
        """The tokenizer of a model that reads text. Raises UserError where the folder has none."""
        return self.tokenizer if self.tokenizer is not None else Tokenizer.load(self.folder)

    def word_settings(self) -> Settings:
        """What tokenizer_config.json says beside the tokenizer itself."""
        return Settings(_json(self.folder / WORDS), str(self.folder / WORDS))

    def token(self, name: str, default: str) -> str:
        """A special token by a field of the processor (`image_token`). Raises UserError for one that does not exist."""
        token = self.processor.take(name, str, default)
        if token not in self.words().special:
            raise self.processor.error(f"{name} is {token!r}, which is no special token of the folder's tokenizer")
        return token

    def done(self) -> None:
        """Raises UserError for a field of a config or of the image processor that nobody asked for."""
        for settings in (self.config, *self.parts.values()):
            settings.done()
        self.pictures.done(idle=())


@dataclass(slots=True)
class Written:
    """What a family writes of a model beside its tensors; `pictures`, `processor` and `clips` where its folders have
    them.

    parts  of a pipeline, the configs of its folders; `config` is then its model_index.json
    words  what else tokenizer_config.json is to say
    answers  what else generation_config.json is to say
    """

    config: dict[str, Any]
    pictures: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    clips: dict[str, Any] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, came: Files | None) -> None:
        """Write the files; of what the model once came with, fields that the family does not say stay."""
        parts = (
            (PIPELINE if self.parts else CONFIG, self.config, came.config if came else None),
            (PICTURES, self.pictures, came.pictures if came else None),
            (PROCESSOR, self.processor, came.processor if came else None),
            *(
                (f"{part}/{file_of(part)}", said, came.parts.get(part) if came else None)
                for part, said in self.parts.items()
            ),
            (CLIPS, self.clips, came.clips if came else None),
        )
        for name, said, before in parts:
            if said:
                said = _over(before.values if before else {}, said)
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(json.dumps(said, indent=2), "utf-8")
        for name, more in ((WORDS, self.words), (GENERATION, self.answers)):
            if more:
                said = {**_json(folder / name), **more}
                (folder / name).write_text(json.dumps(said, ensure_ascii=False, indent=1), "utf-8")


def file_of(part: str) -> str:
    """The config of a pipeline's part."""
    return SCHEDULER if part == "scheduler" else CONFIG


def _parts(index: Settings, folder: Path) -> dict[str, Settings]:
    """The configs of a pipeline's parts, which are written as [library, class]; those that are null are not there.

    Raises UserError for a part that is missing, or one whose class comes with the folder.
    """
    found = {}
    for name, value in index.values.items():
        if not isinstance(value, list) or len(value) != 2 or value == [None, None]:
            continue
        library, kind = index.take(name, list)
        if library not in ("diffusers", "transformers"):
            raise index.error(f"its part {name!r} is the class {kind!r} of {library!r}, code of its own. None is run "
                              "here: take a release whose parts are of diffusers or transformers")  # fmt: skip
        if Path(name).name != name or not (folder / name / file_of(name)).exists():
            raise index.error(f"it names the part {name!r}, and {folder / name / file_of(name)} is not there: fetch "
                              "the folder again")  # fmt: skip
        found[name] = Settings.load(folder / name / file_of(name))
    if not found:
        raise index.error("it names no part: a pipeline has folders of its own")
    return found


def _over(before: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """What is said now, over what was said before; so too of the parts, each of which has a config of its own."""
    inner = [name for name in said if name.endswith("_config") and isinstance(before.get(name), dict)]
    parts = {name: _over(before[name], said[name]) for name in inner if isinstance(said[name], dict)}
    return {**before, **said, **parts}


def _json(path: Path) -> dict[str, Any]:
    """The fields of a JSON file; none where it is not there."""
    if not path.exists():
        return {}
    return Settings.load(path).values
