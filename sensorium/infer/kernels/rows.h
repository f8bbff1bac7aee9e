/* What is done with one row, or with one vector of it, between products. */
#ifndef SENSORIUM_ROWS_H
#define SENSORIUM_ROWS_H

#include "call.h"
#include "vector.h"

/* A register; below 0: what is given back, without a copy. */
INLINE float *reg(const struct call *c, int r) {
    return r < 0 ? (float *)c->out : c->registers + (size_t)r * c->room;
}

/* x (width) -> y (width), which may be x. `head`: whose weights, where each head has its own. */
static void norm_row(const struct norm *norm, const float *x, float *y, int width, int head) {
    float mean = 0, scale;
    vf sum = all(0);
    if (norm->kind == NORM_LAYER) {
        for (int i = 0; i < width; i += LANES) sum += load_some(x + i, width - i);
        mean = total(sum) / width;
        sum = all(0);
        int i = 0;
        for (; i + LANES <= width; i += LANES) sum += (load(x + i) - mean) * (load(x + i) - mean);
        float rest = total(sum);
        for (; i < width; i++) rest += (x[i] - mean) * (x[i] - mean);
        scale = 1.0f / sqrtf(rest / width + norm->eps);
    } else {
        for (int i = 0; i < width; i += LANES) sum += load_some(x + i, width - i) * load_some(x + i, width - i);
        scale = 1.0f / sqrtf(total(sum) / width + norm->eps);
    }
    const size_t at = norm->by_head ? (size_t)head * width : 0;
    for (int i = 0; i < width; i += LANES) {
        vf v = (load_some(x + i, width - i) - mean) * scale;
        if (norm->weight) {
            vf weight = load_typed(norm->weight, norm->weight_type, at + i, width - i);
            v *= norm->centred ? weight + 1.0f : weight;
        }
        if (norm->bias) v += load_typed(norm->bias, norm->bias_type, at + i, width - i);
        store_some(y + i, v, width - i);
    }
}

INLINE vf activate(int kind, vf x) {
    vf zero = all(0);
    switch (kind) {
    case ACT_SILU: return x * sigmoid(x);
    case ACT_QUICK_GELU: return x * sigmoid(1.702f * x);
    case ACT_GELU_TANH: return x * sigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
    case ACT_GELU: {
        vf half = 0.5f * error_complement(x * 0.70710678118f);
        return x * choose(x > zero, 1.0f - half, half);
    }
    case ACT_RELU: return larger(x, zero);
    case ACT_RELU2: return larger(x, zero) * larger(x, zero);
    default: return x;
    }
}

/* Where the outputs of a part come to lie in the end: in its register, or with what they are multiplied by or added to. */
INLINE float *target(const struct call *c, const struct op *op, int which) {
    if (op->out == OUT_ADD) return reg(c, op->to);
    return reg(c, op->part[op->out == OUT_GATED ? 0 : which].to);
}

/* Outputs n0..n1 of rows first..end of a product become what they are for: `made` holds them, rows `apart` floats from
each other. It may be where they come to lie. */
INLINE void finish(const struct call *c, const struct op *op, int which, int first, int end, int n0, int n1,
                   const float *made, size_t apart) {
    const struct part *part = &op->part[which];
    float *y = target(c, op, which) + (size_t)first * part->outputs + n0;
    const int times = op->out == OUT_GATED && which == 1, plus = op->out == OUT_ADD;
    if (made == y && !part->bias && !op->activation) return;
    for (int row = first; row < end; row++, made += apart, y += part->outputs)
        for (int i = 0; i < n1 - n0; i += LANES) {
            const int count = n1 - n0 - i;
            vf v = load_some(made + i, count);
            if (part->bias) v += load_typed(part->bias, part->bias_type, (size_t)(n0 + i), count);
            if (plus && op->scale) v *= load_typed(op->scale, op->scale_type, (size_t)(n0 + i), count);
            if (times) v *= load_some(y + i, count);
            else if (plus) v += load_some(y + i, count);
            else v = activate(op->activation, v);
            store_some(y + i, v, count);
        }
}

#endif
