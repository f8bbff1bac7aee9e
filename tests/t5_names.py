"""Where the tensors of a T5 stand in the reference's state."""


def t5_names(side, layers, other):
    """Our parameter of one side -> transformers'."""
    names = {"norm.weight": f"{other}.final_layer_norm.weight"}
    names["relative.table.weight"] = f"{other}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    last = 2 if side == "decoder" else 1
    for layer in range(layers):
        mine, block = f"blocks.{layer}", f"{other}.block.{layer}.layer"
        names |= {f"{mine}.attention.{x}.weight": f"{block}.0.SelfAttention.{x}.weight" for x in "qkvo"}
        names[f"{mine}.norm1.weight"] = f"{block}.0.layer_norm.weight"
        if side == "decoder":
            names |= {f"{mine}.cross.attention.{x}.weight": f"{block}.1.EncDecAttention.{x}.weight" for x in "qkvo"}
            names[f"{mine}.cross.norm.weight"] = f"{block}.1.layer_norm.weight"
        feed = f"{block}.{last}.DenseReluDense"
        names |= {
            f"{mine}.ffn.{x}.weight": f"{feed}.{y}.weight"
            for x, y in zip(("gate", "up", "down"), ("wi_0", "wi_1", "wo"))
        }
        names[f"{mine}.norm2.weight"] = f"{block}.{last}.layer_norm.weight"
    return names
