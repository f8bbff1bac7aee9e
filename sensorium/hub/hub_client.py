"""Download files from the Hugging Face hub; run as a script, in a process of its own.

A process can be ended when no byte arrives, and its HTTP stack and settings stay out of the program. Interrupted
downloads continue: `hf_hub_download` keeps what arrived in `FOLDER/.cache`.

    python hub_client.py REPO REVISION FOLDER FILE...
"""

from __future__ import annotations

import sys

ETAG_TIMEOUT_S = 5


def main(repo: str, revision: str, folder: str, *files: str) -> None:
    from huggingface_hub import hf_hub_download

    for file in files:
        hf_hub_download(repo, file, revision=revision, local_dir=folder, etag_timeout=ETAG_TIMEOUT_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
