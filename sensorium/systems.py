"""Which published systems a recipe implements, and what shows that each works.

The list is the recipe catalogue: a new recipe appears here by itself, with the letters that hold for every recipe (R,
and F where it declares figures). What is shown for one system alone is written in `SHOWN`. A letter without evidence is
absent. The letters:

R recipe        composes from the shared parts, at the published dimensions, with the published stages
F figures       every published figure that a configuration can be checked against holds
T trains        a size that runs here trains on real data and beats its blind control
C capability    the special thing about the system is shown
P parity        the same weights give the same numbers as in a reference implementation
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from sensorium.recipes.catalog import SIZES, catalog
from sensorium.train.recipe import Recipe

LETTERS = {"R": "recipe", "F": "figures", "T": "trains", "C": "capability", "P": "parity"}

RECIPES = "tests/recipes/test_catalog.py"
PARITY = "tests/recipes/test_parity.py"
GROUNDING = "tests/models/test_grounding.py"
FUSION = "tests/models/test_feature_fusion.py"
DRAWING = "tests/infer/test_drawing.py"
FREEZING = "tests/train/test_trainer.py::test_a_stage_changes_what_it_trains_and_not_one_bit_of_the_rest"
TRAINED = ("clip", "siglip", "unicl", "blip-2", "instructblip", "minigpt-4", "flamingo", "openflamingo", "cogvlm")
SHOWN: dict[tuple[str, str], tuple[str, ...]] = {
    ("llava", "T"): ("sensorium quickstart",),
    **{(name, "T"): (f"sensorium train {name} --size small",) for name in TRAINED},
    ("llava", "C"): (FREEZING, "tests/infer/test_session.py::test_every_turn_equals_a_fresh_request"),
    ("llava-1.5", "C"): (f"{RECIPES}::test_connectors_are_the_published_ones", FREEZING),
    ("llava-1.5-13b", "C"): (f"{RECIPES}::test_connectors_are_the_published_ones", FREEZING),
    ("llava-next", "C"): (
        "tests/connectors/test_anyres.py::test_unpadding_follows_the_published_rule",
        "tests/connectors/test_anyres.py::test_tokens_of_llava_next_worked_out_by_hand",
        "tests/connectors/test_anyres.py::test_tiles_become_one_grid_with_newlines",
        f"{PARITY}::test_tiles_and_tokens_of_300_picture_sizes_are_those_of_transformers",
    ),
    ("yi-vl", "C"): (
        f"{RECIPES}::test_connectors_are_the_published_ones",
        "tests/connectors/test_mlp.py::test_norms_follow_every_linear_layer",
        FREEZING,
    ),
    ("chinese-llava", "C"): (f"{RECIPES}::test_chinese_systems_read_and_answer_in_chinese",),
    ("seechat", "C"): (f"{RECIPES}::test_chinese_systems_read_and_answer_in_chinese",),
    ("minigpt-v2", "C"): (
        f"{RECIPES}::test_minigpt_v2_joins_four_features_and_writes_its_tags_and_boxes",
        "tests/connectors/test_pool.py::test_minigpt_v2_makes_256_tokens_of_448_pixels",
        FREEZING,
    ),
    ("dit", "C"): (
        "tests/models/test_denoiser.py::test_packed_equals_separate_for_any_shape",
        "tests/models/test_denoiser.py::test_a_new_model_predicts_zero_and_every_parameter_learns_soon",
        "tests/infer/test_painting.py::test_guidance",
        "tests/infer/test_painting.py::test_sdedit_keeps_the_picture_at_strength_zero_and_forgets_it_at_one",
        "tests/infer/test_painting.py::test_inpainting_keeps_what_is_kept",
    ),
    ("next-gpt", "C"): (
        "tests/models/test_generator.py::test_gradients_reach_the_signals_and_stay_out_of_a_frozen_denoiser",
        "tests/infer/test_handover.py::test_states_of_cached_decoding_are_those_of_a_full_forward",
        "tests/infer/test_handover.py::test_an_answer_is_words_and_pictures_in_order",
        "tests/train/test_generation_stages.py::test_four_stages_end_to_end_stopped_and_resumed_it_is_the_same_run",
    ),
    ("dit", "P"): (
        "tests/nn/test_dit_block_parity.py::test_dit_block",
        "tests/diffusion/test_schedulers_parity.py::test_dpm_solver",
    ),
    ("llava-1.5", "P"): (f"{PARITY}::test_llava_1_5_is_transformers_llava",),
    ("llava-1.5-13b", "P"): (f"{PARITY}::test_llava_1_5_is_transformers_llava",),
    ("llava-next", "P"): (f"{PARITY}::test_llava_next_is_transformers_llava_next",),
    ("llava-next-34b", "P"): (f"{PARITY}::test_llava_next_is_transformers_llava_next",),
    ("clip", "C"): (
        "tests/train/test_caching.py::test_micro_batches_are_one_big_batch",
        "tests/train/test_caching.py::test_ranks_together_have_the_gradient_of_one_process",
        "tests/models/test_dual.py::test_the_scale_stops_at_its_ceiling_and_comes_back",
    ),
    ("siglip", "C"): (
        "tests/objectives/test_contrastive.py::test_sigmoid_is_log_sigmoid_over_the_whole_table_per_pair",
        "tests/objectives/test_contrastive.py::test_a_batch_over_ranks_is_the_whole_batch",
    ),
    ("unicl", "C"): (
        "tests/objectives/test_contrastive.py::test_labels_make_all_of_one_label_positives_by_hand",
        "tests/objectives/test_contrastive.py::test_equal_texts_have_equal_labels_wherever_they_stand",
    ),
    ("flamingo", "C"): (
        f"{FUSION}::test_before_training_the_language_model_is_what_it_was_to_the_last_bit",
        f"{FUSION}::test_text_alone_never_meets_the_new_layers_of_flamingo",
        f"{FUSION}::test_who_reads_what_is_what_the_rule_says",
        f"{FUSION}::test_with_the_latest_alone_an_earlier_picture_is_not_read_again",
        f"{FUSION}::test_frames_of_a_clip_are_one_item_in_their_order",
        "tests/infer/test_fusion_decoding.py::test_answers_are_those_of_the_full_forward_pass",
    ),
    ("openflamingo", "C"): (
        f"{FUSION}::test_before_training_the_language_model_is_what_it_was_to_the_last_bit",
        f"{FUSION}::test_only_every_so_manieth_block_reads",
    ),
    ("cogvlm", "C"): (
        f"{FUSION}::test_a_token_takes_the_weights_of_its_route_and_all_attend_jointly",
        f"{FUSION}::test_text_alone_never_meets_the_expert",
        f"{FUSION}::test_the_expert_starts_as_a_copy_and_then_changes_nothing",
    ),
    ("blip-2", "C"): (
        f"{GROUNDING}::test_in_the_contrastive_pass_neither_sees_the_other",
        f"{GROUNDING}::test_the_language_pass_sees_the_picture_and_earlier_words_alone",
        f"{GROUNDING}::test_drawn_negatives_are_never_a_match_and_follow_the_seed",
        "tests/train/test_blip2_stages.py::test_the_q_former_goes_on_and_its_last_layer_is_new",
        FREEZING,
    ),
    ("blip-2-flan-t5", "C"): (
        "tests/infer/test_encoder_decoder.py::test_the_prompt_is_the_source_and_the_answer_the_target",
        "tests/infer/test_encoder_decoder.py::test_generation_does_not_depend_on_slots_and_equals_reading_everything_again",
        FREEZING,
    ),
    ("instructblip", "C"): (
        "tests/connectors/test_qformer.py::test_the_tokens_of_a_picture_change_with_the_instruction_only_where_they_should",
        FREEZING,
    ),
    ("minigpt-4", "C"): (
        f"{RECIPES}::test_stages_train_what_the_paper_says_and_nothing_else[minigpt-4-tiny]",
        FREEZING,
    ),
    ("fuyu", "C"): (
        "tests/encoders/test_patch.py::test_every_picture_keeps_its_aspect_ratio_and_is_encoded_as_alone",
        "tests/encoders/test_patch.py::test_rows_end_with_the_newline",
    ),
    ("chameleon", "C"): (
        "tests/models/test_token_spans.py::test_packed_documents_equal_separate_ones",
        "tests/models/test_token_spans.py::test_the_z_loss_is_the_squared_log_of_the_sum_of_exponentials",
        f"{DRAWING}::test_a_picture_among_words_is_whole_even_at_the_end_of_the_answer",
    ),
    ("emu3", "C"): (
        f"{DRAWING}::test_every_drawn_picture_has_its_rows_and_is_closed",
        f"{DRAWING}::test_guidance_of_scale_1_is_no_guidance_and_of_scale_0_no_prompt",
        "tests/train/test_codec_stages.py::test_the_codec_learns_alone_and_then_rests_to_the_last_bit",
    ),
    ("fuyu", "P"): ("tests/recipes/test_fuyu_parity.py::test_fuyu_is_transformers_fuyu_for_pictures_of_any_size",),
    ("blip-2", "P"): (
        "tests/connectors/test_qformer.py::test_the_q_former_of_blip_2",
        "tests/nn/test_block_parity.py::test_opt",
    ),
    ("blip-2-flan-t5", "P"): (
        "tests/connectors/test_qformer.py::test_the_q_former_of_blip_2",
        "tests/nn/test_block_parity.py::test_t5",
        "tests/infer/test_encoder_decoder.py::test_twenty_greedy_tokens_are_those_of_transformers",
    ),
    ("instructblip", "P"): ("tests/connectors/test_qformer.py::test_the_q_former_of_instructblip",),
    ("clip", "P"): ("tests/recipes/test_contrastive_parity.py::test_clip_is_transformers_clip",),
    ("siglip", "P"): ("tests/recipes/test_contrastive_parity.py::test_siglip_is_transformers_siglip",),
}
"""(recipe, letter) -> tests, or commands that begin with `sensorium`, that show it."""


@dataclass(frozen=True, slots=True)
class System:
    """A published system. `letters` maps each letter that is shown to what shows it."""

    name: str
    title: str
    family: str
    paper: str
    sizes: tuple[str, ...]
    letters: dict[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        letters = {letter: list(evidence) for letter, evidence in self.letters.items()}
        known = {"name": self.name, "title": self.title, "family": self.family, "paper": self.paper}
        return {**known, "sizes": list(self.sizes), "letters": letters}


def systems() -> list[System]:
    """Every system that a recipe implements, in the order of the catalogue."""
    return [_system(function("paper")) for function in catalog()]


def _system(recipe: Recipe) -> System:
    stages = f"{RECIPES}::test_stages_train_what_the_paper_says_and_nothing_else[{recipe.name}-paper]"
    letters: dict[str, tuple[str, ...]] = {"R": (stages,)}
    if recipe.figures:
        letters["F"] = (f"{RECIPES}::test_published_figures_hold[{recipe.name}]",)
    for letter in LETTERS:
        if (recipe.name, letter) in SHOWN:
            letters[letter] = SHOWN[recipe.name, letter]
    return System(recipe.name, recipe.title, recipe.family, recipe.paper, SIZES, letters)


def table() -> Table:
    """The systems for a terminal."""
    found = Table(title="systems that a recipe implements", title_justify="left")
    for name in ("name", "system", "family", "sizes", "paper", "shown"):
        found.add_column(name, overflow="fold", no_wrap=name in ("name", "shown"))
    for one in systems():
        shown = " ".join(letter for letter in LETTERS if letter in one.letters)
        found.add_row(one.name, one.title, one.family, ", ".join(one.sizes), one.paper, shown)
    return found


def markdown() -> str:
    """The page docs/systems.md."""
    return "\n".join([*_page(systems()), ""])


def _page(found: list[System]) -> Iterable[str]:
    yield "# Systems"
    yield ""
    yield "Generated by `sensorium systems --markdown`: do not edit. Each system is a recipe at three sizes; see"
    yield "`sensorium show NAME --size paper`. A letter stands where something shows it, and what shows it is below."
    yield ""
    yield "- **R** recipe: composes from the shared parts at the published dimensions, with the published stages."
    yield "- **F** figures: every published figure that a configuration can be checked against holds."
    yield "- **T** trains: a size that runs here trains on real data and beats its blind control."
    yield "- **C** capability: the special thing about the system is shown."
    yield "- **P** parity: the same weights give the same numbers as in a reference implementation."
    yield ""
    yield f"| name | system | family | paper | {' | '.join(LETTERS)} |"
    yield "|-|-|-|-|" + "-|" * len(LETTERS)
    for one in found:
        marks = " | ".join("x" if letter in one.letters else "" for letter in LETTERS)
        yield f"| `{one.name}` | {one.title} | {one.family} | {one.paper} | {marks} |"
    yield ""
    yield "## What shows it"
    for one in found:
        yield ""
        yield f"### {one.title} (`{one.name}`)"
        yield ""
        for letter, evidence in one.letters.items():
            yield f"- **{letter}** {', '.join(f'`{item}`' for item in evidence)}"
