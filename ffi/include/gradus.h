/* gradus: kernels for reinforcement fine-tuning of quantised language models. C ABI, C99 and C++.
 *
 * #include "gradus.h", link with -lgradus_c (pkg-config gradus). The library needs nothing else: the
 * NVIDIA driver is looked up at run time, and a machine without one has the CPU device.
 *
 *   gradus_context ctx;
 *   if (gradus_create("cpu", &ctx) != GRADUS_OK) { puts(gradus_last_error()); return 1; }
 *   gradus_lerp_args args;
 *   gradus_init("lerp", &args, sizeof args);           defaults, and args.struct_size
 *   args.a = gradus_vector(a, GRADUS_F32, n);
 *   ...
 *   status = gradus_lerp(ctx, NULL, &args);
 *
 * Rules
 *  - Every function returns a status (or a version, a size, a text). Nothing aborts, exits, prints or
 *    unwinds. After a failure gradus_last_error() says which argument, what it got and what was expected.
 *  - A refused call (GRADUS_INVALID_ARGUMENT) has written nothing. A call that fails later leaves its outputs
 *    unspecified, and everything else as it was.
 *  - gradus_NAME(ctx, stream, args) is op NAME. Fill args with gradus_init("NAME", &args, sizeof args),
 *    which sets struct_size and every default; a tensor that stays all zero is absent. Fields that are
 *    not marked optional must be given.
 *  - Growth: fields are only ever added at the end. A smaller struct_size (a program built with an
 *    older header) gets the defaults of what it lacks; a larger one is refused if its unknown tail is
 *    not zero.
 *  - `stream` is a CUstream (cudaStream_t); NULL is the legacy default stream, and on the CPU device the
 *    only legal value. Device work is asynchronous: an op whose operands all are device memory, and
 *    that has no result for the host, waits for nothing and, after its first call with such shapes,
 *    allocates nothing (gradus_reserve makes that true of the first as well).
 *  - Memory: tensors in host memory are legal on every device; on a GPU they are copied and the call waits.
 *    Results of type double, int64_t or struct are always host memory.
 *  - The library retains a device's primary context, the one of the CUDA runtime and of torch, and makes
 *    it current on the calling thread for the call.
 *  - Threads: every function may be called from any thread at any time. Calls on one stream of one
 *    context take turns. gradus_last_error() belongs to its thread.
 *  - The CPU device has a pool of threads, one a core (RAYON_NUM_THREADS), or uses yours: gradus_set_team.
 *  - Out of memory: host memory that cannot be had is GRADUS_OUT_OF_MEMORY, as a device's is. gradus_create starts
 *    the threads of the CPU device, or fails and may be called again; no later call starts a thread. What the C
 *    library itself takes when a thread starts or first calls is its own: it ends the process where it has none.
 *  - A child of fork() has no thread pool: do not call the library in one whose parent did. Spawn instead.
 *  - Determinism: results do not depend on the number of threads, streams or rows of a batch.
 *
 * Letters in comments: F is one of f32, bf16, f16, f64 (f64: CPU, and GPU where stated), the same for all
 * F of a call; R is f32 or f64. [T, D] are extents. `in`, `out` and `inout` say who reads and writes.
 * Vectors may have any stride >= 0; in higher ranks the last dimension is contiguous. 16-bit and wider
 * elements are aligned to their size; outputs overlap neither themselves nor inputs.
 *
 * T tokens, V vocabulary, B sequences, G groups, H heads, D head dimension, Y[M, N] = X[M, K] W[N, K]^T.
 * cu_seqlens: B + 1 offsets of packed sequences, from 0 to the number of tokens, never falling.
 */
#ifndef GRADUS_H
#define GRADUS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define GRADUS_API __declspec(dllimport)
#elif defined(__GNUC__)
#define GRADUS_API __attribute__((visibility("default")))
#else
#define GRADUS_API
#endif

/* ---- versions ------------------------------------------------------------------------------- */

#define GRADUS_VERSION_MAJOR 0
#define GRADUS_VERSION_MINOR 1
#define GRADUS_VERSION_PATCH 0
/* The version of this header. A library with the same major and minor number fits. */
#define GRADUS_VERSION_NUMBER (GRADUS_VERSION_MAJOR * 1000000 + GRADUS_VERSION_MINOR * 1000 + GRADUS_VERSION_PATCH)

/* GRADUS_VERSION_NUMBER of the library. */
GRADUS_API int32_t gradus_version(void);
/* One line: version, features, kernel sets, compilers of the kernels. Static. */
GRADUS_API const char *gradus_build_info(void);
/* Size of gradus_NAME_args of op `name`, or of a struct of this header by its name without the prefix
 * ("tensor", "nf4", ...), in the library; 0 for an unknown name. For bindings that declare structs again. */
GRADUS_API size_t gradus_sizeof(const char *name);

/* ---- status --------------------------------------------------------------------------------- */

typedef int32_t gradus_status;
enum {
  GRADUS_OK = 0,
  GRADUS_INVALID_ARGUMENT = 1, /* an argument is outside its contract; nothing was computed */
  GRADUS_NON_FINITE = 2,       /* a value that must be finite is NaN or infinite */
  GRADUS_OUT_OF_MEMORY = 3, /* also host memory: nothing aborts. The context works on; try again with more room */
  GRADUS_NO_DRIVER = 4,    /* no usable GPU driver, or no such device */
  GRADUS_DEVICE_LOST = 5,  /* the device failed in a way that ends its CUDA context */
  GRADUS_IO = 6,
  GRADUS_FORMAT = 7,       /* data that was read does not hold what it should */
  GRADUS_CONFIG = 8,       /* no such preset */
  GRADUS_DRIVER = 12,      /* a driver call failed; the device can go on */
  GRADUS_UNSUPPORTED = 13, /* the op cannot run there */
  GRADUS_BAD_HANDLE = 14,  /* no such context: never created, or destroyed */
  GRADUS_PANIC = 15        /* a bug in gradus; the text says where. The process is unharmed */
};

/* Name of a status, such as "INVALID_ARGUMENT". Static, never NULL. */
GRADUS_API const char *gradus_status_string(gradus_status status);
/* Text of the last failed call on this thread, valid until the next one; "" if there was none. */
GRADUS_API const char *gradus_last_error(void);

/* ---- devices -------------------------------------------------------------------------------- */

/* A device with its loaded kernels. A number, not a pointer: a context that was destroyed is recognised. */
typedef uint64_t gradus_context;

/* `device` is "cpu", "cuda" (the first), "cuda:N", or "auto": the first CUDA device if there is one
 * that can run the kernels, else the CPU. Libraries built with the feature `emu` also know "emu:sm80"
 * and "emu:sm90a", which run the GPU kernels on the CPU. */
GRADUS_API gradus_status gradus_create(const char *device, gradus_context *ctx);
/* Waits for the context's work and releases it. 0 is legal and does nothing. */
GRADUS_API gradus_status gradus_destroy(gradus_context ctx);
/* Product name of the device, at most `size` bytes with the final NUL. */
GRADUS_API gradus_status gradus_device_name(gradus_context ctx, char *name, size_t size);

/* Device memory for programs without an allocator of their own. On the CPU device: host memory. */
GRADUS_API gradus_status gradus_alloc(gradus_context ctx, size_t bytes, void **memory);
GRADUS_API gradus_status gradus_free(gradus_context ctx, void *memory);
/* Copies that are ordered on the stream; upload may return before it is done, download waits. */
GRADUS_API gradus_status gradus_upload(gradus_context ctx, void *stream, void *device, const void *host, size_t bytes);
GRADUS_API gradus_status gradus_download(gradus_context ctx, void *stream, void *host, const void *device, size_t bytes);
/* Waits until all work of the stream is done. */
GRADUS_API gradus_status gradus_synchronize(gradus_context ctx, void *stream);

/* Bytes of device memory that op `name` takes beside its operands; 0 on the CPU device. `args` is the
 * op's struct; its tensors' memory is not touched. */
GRADUS_API gradus_status gradus_workspace_size(gradus_context ctx, const char *name, const void *args, size_t *bytes);
/* Makes `bytes` bytes ready on a stream, so that no op that takes at most as many allocates there. */
GRADUS_API gradus_status gradus_reserve(gradus_context ctx, void *stream, size_t bytes);

/* The type of GOMP_parallel of the OpenMP runtimes of GNU and LLVM: calls body(data) on every thread of a
 * team, the caller's among them, and returns when all have returned. The library passes 0 for `threads`, the
 * team's own number, and for `flags`. */
typedef void (*gradus_team)(void (*body)(void *data), void *data, unsigned threads, unsigned flags);
/* Whose threads the CPU device computes on, in the whole process: NULL, as at first, takes the library's
 * own. For programs with a pool of their own, whose threads would else compete with the library's for the
 * cores. Results do not depend on it. `run` has to stay callable until another one is set. */
GRADUS_API gradus_status gradus_set_team(gradus_team run);

/* ---- tensors -------------------------------------------------------------------------------- */

enum { /* dtype */
  GRADUS_U8 = 0,
  GRADUS_I32 = 1,
  GRADUS_I64 = 2,
  GRADUS_F16 = 3,
  GRADUS_BF16 = 4,
  GRADUS_F32 = 5,
  GRADUS_F64 = 6
};
enum { /* memory */
  GRADUS_HOST = 0,
  GRADUS_DEVICE = 1 /* of the context's GPU */
};

/* Borrowed for the call. All zero is no tensor. */
typedef struct gradus_tensor {
  void *data;
  int32_t dtype;
  int32_t memory;
  int32_t rank;       /* 1 to 4 */
  int32_t reserved;   /* 0 */
  int64_t shape[4];   /* the first `rank` count */
  int64_t strides[4]; /* in elements; 0 repeats */
} gradus_tensor;

/* Contiguous tensors in host memory; set .memory = GRADUS_DEVICE for device memory. */
static inline gradus_tensor gradus_matrix(const void *data, int32_t dtype, int64_t rows, int64_t columns) {
  gradus_tensor t = {(void *)data, dtype, GRADUS_HOST, 2, 0, {rows, columns, 0, 0}, {columns, 1, 0, 0}};
  return t;
}
static inline gradus_tensor gradus_vector(const void *data, int32_t dtype, int64_t n) {
  gradus_tensor t = {(void *)data, dtype, GRADUS_HOST, 1, 0, {n, 0, 0, 0}, {1, 0, 0, 0}};
  return t;
}

/* Fills the struct of op `name` with its defaults. `size` is sizeof the struct. */
GRADUS_API gradus_status gradus_init(const char *name, void *args, size_t size);

/* ---- 4-bit weights -------------------------------------------------------------------------- */

enum { GRADUS_NF4 = 0, GRADUS_FP4 = 1 }; /* quant_type */

/* A 4-bit matrix [N, K] in the layout of bitsandbytes; the field names are those of its QuantState. */
typedef struct gradus_nf4 {
  gradus_tensor packed;           /* u8 [ceil(N K / 2)], the first of two codes in the high nibble */
  gradus_tensor absmax;           /* f32 [blocks], or u8 [blocks] with double quantisation */
  gradus_tensor quant_map;        /* f32 [16] values of the codes */
  gradus_tensor nested_absmax;    /* f32 [ceil(blocks / nested_blocksize)]; only with u8 absmax, as all nested_* */
  gradus_tensor nested_quant_map; /* f32 [256] */
  int64_t n, k;
  int64_t blocksize;        /* values a maximum: a power of two, 32 to 4,096 */
  int64_t nested_blocksize; /* maxima a nested maximum; bitsandbytes: 256 */
  double offset;            /* added to every decoded maximum */
  int32_t dtype;            /* that was quantised, and that weights are rounded to: GRADUS_F32, BF16 or F16 */
  int32_t reserved;         /* 0 */
} gradus_nf4;

/* Fills n, k, blocksize, nested_blocksize, offset and dtype from the JSON of bitsandbytes that a checkpoint
 * has under `<weight>.quant_state.bitsandbytes__nf4` (or `__fp4`); the tensors stay as they are. */
GRADUS_API gradus_status gradus_nf4_parse(const uint8_t *quant_state, size_t bytes, gradus_nf4 *w);
/* The 16 values of a code book, and the 256 of bitsandbytes' dynamic map, signed or not. */
GRADUS_API gradus_status gradus_nf4_code(int32_t quant_type, float *values);
GRADUS_API gradus_status gradus_dynamic_map(int32_t is_signed, float *values);

/* An adapter: scale (X A^T) B^T is added to the product. */
typedef struct gradus_lora {
  gradus_tensor a; /* F [r, K] */
  gradus_tensor b; /* F [N, r] */
  double scale;    /* usually alpha / r */
} gradus_lora;

/* ---- ops ------------------------------------------------------------------------------------ */

#include "gradus/vocabulary.h" /* logprob, linear_logprob, gather_k, vocab_kl, sample */
#include "gradus/policy.h"     /* policy_loss, offpolicy_weight, value_loss, gae, group_advantage, pair losses, ... */
#include "gradus/matrix.h"     /* matmul, nf4_matmul, quantisation, adapters, decoder ops, optimisers */

#ifdef __cplusplus
}
#endif
#endif
