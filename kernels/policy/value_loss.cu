// The critic's loss: half the squared error to the returns, optionally clipped around old values
// (Schulman et al. 2017, arXiv:1707.06347, with the value clip of the PPO code base).
//
//     L = ½·max((v - R)², (v_old + clip(v - v_old, ±eps) - R)²)
//
// | operand                   | shape | dtype    | layout                    |
// |---------------------------|-------|----------|---------------------------|
// | value, returns, old_value | [N]   | f32, f64 | any stride                |
// | mask                      | [N]   | u8       | any stride, may be absent |
// | dvalue                    | [N]   | f32, f64 | any stride                |
// | loss                      | [1]   | f64      |                           |
//
// Mapping: 4,096 tokens per block; the block that is done last adds the blocks' sums; one launch.
// Traffic: 4 elements and a mask byte a token. Numerics: f64, rounded once; the sum is a tree that
// depends on N alone. Masked tokens are not read and get an exact 0.
#include "common.cuh"
#include "value_loss.h"

template <class R> __device__ __forceinline__ double one_token(const ValueLossParams<R>& p, i64 t) {
    if (p.mask.get_or(t, 1) == 0) {
        p.dvalue.set(t, R(0));
        return 0.0;
    }
    const double v = wide(p.value, t), target = wide(p.returns, t), error = v - target;
    double clipped = error;
    if (p.old_value.at) {
        const double old = wide(p.old_value, t);
        clipped = old + clamp(v - old, -p.clip, p.clip) - target;
    }
    // Inside the window both errors are equal, and the gradient is the free one. NaN is in both.
    const double square = clipped * clipped;
    const double slope = square != square ? square : square > error * error ? 0.0 : error;
    p.dvalue.set(t, from_f64<R>(p.weight * slope));
    return 0.5 * (square != square ? square : at_least(error * error, square));
}

template <class R> __device__ __forceinline__ void value_loss(const ValueLossParams<R>& p) {
    __shared__ double warps[THREADS / WARP];
    const i64 first = (i64)blockIdx.x * TILE,
              last = first + TILE < p.tokens ? first + TILE : p.tokens;
    double sum = 0.0;
    for (i64 t = first + threadIdx.x; t < last; t += THREADS) sum += one_token(p, t);
    sum = block_reduce<THREADS>(sum, 0.0, Sum(), warps);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
    if (!last_block(p.ticket, gridDim.x)) return;
    sum = 0.0;
    for (i64 b = threadIdx.x; b < gridDim.x; b += THREADS) sum += p.partial[b];
    sum = block_reduce<THREADS>(sum, 0.0, Sum(), warps);
    if (threadIdx.x == 0) *p.loss = p.weight * sum;
}

KERNEL(value_loss_f32, (THREADS), ValueLossParams<float>) { value_loss(p); }
KERNEL(value_loss_f64, (THREADS), ValueLossParams<double>) { value_loss(p); }
