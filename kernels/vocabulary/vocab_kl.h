// What `vocab_kl.cu` and its launch share.
#pragma once

#include "rows.h"

enum DivergenceKind : i32 {
    DIVERGENCE_KIND_FORWARD_KL,
    DIVERGENCE_KIND_REVERSE_KL,
    DIVERGENCE_KIND_JSD,
    DIVERGENCE_KIND_TOTAL_VARIATION
};

struct VocabKlParams {
    RowSet set;
    const void *policy, *reference, *guide;
    void* dpolicy;
    i64 policy_stride, reference_stride, guide_stride, out_stride;
    Column<const float> dvalue;
    Column<float> value;
    float gamma, beta;
    DivergenceKind kind;
    i32 unused;
};
