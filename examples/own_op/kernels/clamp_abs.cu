// clamp_abs: y[i] = x[i] cut to [-limit, limit], and how many elements were cut.
//
//   x      [n] f32, any stride
//   y      [n] f32, any stride
//   cut    one u64 that is 0 before the launch, or null: elements outside the interval
//
// One thread per element. Traffic: 8 bytes per element, and one atomic per warp that cut anything.
// NaN stays NaN and counts as not cut. Counts are integers, so their order does not change a bit.

typedef long long i64;
typedef unsigned long long u64;

// `gradus::device::Column`: an address and the elements from one to the next.
template <class T> struct Column {
    T* at;
    i64 stride;
};

// `Params` of clamp_abs.rs: the same fields in the same order.
struct ClampAbsParams {
    Column<const float> x;
    Column<float> y;
    u64* cut;
    i64 n;
    float limit;
    int pad;
};

extern "C" __global__ void __launch_bounds__(256) clamp_abs_f32(const ClampAbsParams p) {
    const i64 i = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    bool cut = false;
    if (i < p.n) {
        const float x = p.x.at[i * p.x.stride];
        cut = x > p.limit || x < -p.limit;
        p.y.at[i * p.y.stride] = cut ? (x > 0.0f ? p.limit : -p.limit) : x;
    }
    // All 32 lanes come here, also those beyond the end.
    const unsigned lanes = __ballot_sync(0xffffffffu, cut);
    if (p.cut && lanes != 0 && threadIdx.x % 32 == 0) atomicAdd(p.cut, (u64)__popc(lanes));
}
