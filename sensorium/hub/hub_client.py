"""Download files from the Hugging Face hub; run as a script, in a process of its own.

A process can be ended when no byte arrives, and its HTTP stack and settings stay out of the program. The library's own
`hf_hub_download` throws a half file away (huggingface_hub 2), so its `http_get` is used here: an interrupted download
goes on where it stopped. Tokens, mirrors (`HF_ENDPOINT`) and proxies are the library's.

    python hub_client.py REPO REVISION FOLDER (FILE SIZE)...
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(repo: str, revision: str, folder: str, *files: str) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    for file, size in zip(files[::2], map(int, files[1::2]), strict=True):
        final = Path(folder, file)
        if final.exists():
            continue
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(final.name + ".part")
        if part.exists() and part.stat().st_size > size:  # no server can continue this
            part.unlink()
        with part.open("ab") as stream:
            url = hf_hub_url(repo, file, revision=revision)
            http_get(url, stream, resume_size=stream.tell(), headers=build_hf_headers(), expected_size=size)
        part.replace(final)


if __name__ == "__main__":
    main(*sys.argv[1:])
