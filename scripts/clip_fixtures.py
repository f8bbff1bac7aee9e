"""What the published processors of clips make of them, for tests/convert/fixtures: python scripts/clip_fixtures.py

The reference's processors of clips need torchvision, which this project does without, so the tests read what they made
from small files. To make these again, in an environment of its own (Linux, Python 3.11):

    pip install torch==2.14.1 torchvision==0.29.1 transformers==5.24.0 num2words numpy pillow
    PYTHONPATH=.:tests/convert python scripts/clip_fixtures.py

Of each case: ids of the prompt, prepared pixels, numbers of the frames that were taken, and the settings as they are
written by the processor.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from clip_cases import QWEN2_VL, RATES, SMOLVLM, ClipCase
from moving_pictures import digest, frames
from num2words import num2words
from transformers.video_utils import VideoMetadata

FOLDER = Path(__file__).parents[1] / "tests/convert/fixtures"


def smolvlm(case: ClipCase) -> Any:
    return transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**case.pictures), case.words(),
        transformers.SmolVLMVideoProcessor(**case.clips), image_seq_len=case.tokens,
    )  # fmt: skip


def qwen2_vl(case: ClipCase) -> Any:
    return transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(**case.pictures), case.words(),
        transformers.Qwen2VLVideoProcessor(**case.clips),
    )  # fmt: skip


def prepared(case: ClipCase, processor: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The processor's tensors for the case's conversation, and what is said of it."""
    given = frames(*case.shape)
    processor.chat_template = processor.tokenizer.chat_template
    video = np.stack([np.asarray(one) for one in given])
    rate, count = case.rate, len(given)
    metadata = VideoMetadata(total_num_frames=count, fps=rate, duration=count / rate)
    options = {"do_sample_frames": case.sampled and not case.taken}
    if case.taken:
        video, metadata.frames_indices = video[list(case.taken)], list(case.taken)
    elif not case.sampled:
        metadata.frames_indices = list(range(count))
    made = processor.apply_chat_template(
        case.messages(video), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"video_metadata": [metadata], **options},
    )  # fmt: skip
    alone = processor.video_processor([video], video_metadata=[metadata], return_metadata=True, **options)
    taken = [int(one) for one in alone["video_metadata"][0].frames_indices]
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        settings = json.loads((Path(folder) / "processor_config.json").read_text("utf-8"))
    return made, {"frames": digest(given), "taken": taken, "settings": settings}


def sampled() -> list[dict[str, Any]]:
    """Which frames the processor of SmolVLM takes of clips of many lengths and rates."""
    found = []
    for fps, most in ((1, 64), (2.5, 7), (0.5, 4)):
        processor = transformers.SmolVLMVideoProcessor(fps=fps, num_frames=most)
        for total in (1, 2, 3, 10, 97, 300, 3601):
            for rate in RATES:
                metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
                numbers = processor.sample_frames(metadata)
                found.append({"fps": fps, "most": most, "total": total, "rate": rate, "taken": numbers.tolist()})
    return found


def main() -> None:
    said: dict[str, Any] = {
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "numbers": {number: num2words(number) for number in (*range(0, 130), *range(131, 1_000_000, 12_347), 999_999)},
        "sampled": sampled(), "cases": {},
    }  # fmt: skip
    arrays: dict[str, np.ndarray] = {}
    for make, cases in ((smolvlm, SMOLVLM), (qwen2_vl, QWEN2_VL)):
        for case in cases:
            made, told = prepared(case, make(case))
            said["cases"][case.name] = told
            for name, value in made.items():
                if name in ("input_ids", "pixel_values", "pixel_values_videos", "video_grid_thw"):
                    arrays[f"{case.name}/{name}"] = torch.as_tensor(value).numpy()
    np.savez_compressed(FOLDER / "clips.npz", **arrays)
    (FOLDER / "clips.json").write_text(json.dumps(said, indent=None, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
