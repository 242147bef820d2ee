/* gradus: kernels for reinforcement fine-tuning of quantized language models. C ABI for C99 and C++.
 *
 * #include "gradus.h", link with -lgradus_c (pkg-config gradus). Nothing else is needed: the
 * library finds the NVIDIA driver at run time, and without one there is still the CPU device.
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
 *  - Errors: every function returns a status, or a version, a size or a text. No function aborts, exits, prints
 *    or unwinds. After a failure gradus_last_error() names the argument, what it got and what was expected.
 *  - A refused call (GRADUS_INVALID_ARGUMENT) has written nothing. A call that fails later leaves its outputs
 *    unspecified, and everything else as it was.
 *  - Calls: gradus_NAME(ctx, stream, args) runs op NAME. Fill args with gradus_init("NAME", &args, sizeof args),
 *    which sets struct_size and every default. A tensor that stays all zero is absent. A field must be given
 *    unless its comment says "optional" or has a default; a number without a default starts at 0.
 *  - Enumerations: the comment of an int32_t that takes one begins with the name of the enum. An unknown number
 *    is refused. So is a number other than 0 and 1 where the comment says what 1 does.
 *  - Growth: fields are only ever added at the end. A program built with an older header passes a smaller
 *    struct_size and gets the defaults of the fields it lacks. A larger struct_size is refused unless the bytes
 *    that the library does not know are zero.
 *  - Streams: `stream` is a CUstream (cudaStream_t). NULL is the legacy default stream, and the only legal value
 *    on the CPU device. Device work is asynchronous. An op waits for nothing if all its operands are device
 *    memory and it has no result for the host. After its first call with given shapes it also allocates nothing;
 *    gradus_reserve makes that true of the first call too.
 *  - Memory: tensors in host memory are legal on every device; on a GPU they are copied and the call waits.
 *    Results of type double, int64_t or struct are always host memory.
 *  - CUDA contexts: the library retains the primary context of a device, which the CUDA runtime and torch use
 *    too, and makes it current on the calling thread during a call.
 *  - Threads: every function may be called from any thread at any time. Calls on one stream of one
 *    context take turns. Each thread has its own gradus_last_error().
 *  - CPU threads: the CPU device has a pool with one thread per core (RAYON_NUM_THREADS changes the number), or
 *    uses the threads of the caller: see gradus_set_team.
 *  - Out of memory: a lack of host memory is GRADUS_OUT_OF_MEMORY, like a lack of device memory. gradus_create
 *    starts the threads of the CPU device; if it fails it may be called again. No later call starts a thread.
 *    The C library allocates memory of its own when a thread starts or makes its first call, and ends the
 *    process if it gets none; this library cannot prevent that.
 *  - fork(): a child process has no thread pool. If the parent has called the library, the child must not;
 *    spawn a new process instead.
 *  - Determinism: results do not depend on the number of threads or streams, or on the other rows of a batch.
 *
 * Letters in comments: F is one of f32, bf16, f16, f64, and one call has one F (f64: on the CPU, and on a GPU
 * where stated). R is f32 or f64. [T, D] are extents. `in` is read, `out` is written, `inout` is both.
 * A vector may have any stride >= 0. In higher ranks the last dimension is contiguous. Elements are aligned to
 * their size. An output overlaps neither itself nor any other tensor.
 *
 * T tokens, V vocabulary, B sequences, G groups, H heads, D head dimension, Y[M, N] = X[M, K] W[N, K]^T.
 * cu_seqlens: the B + 1 offsets of packed sequences, from 0 to the number of tokens, in ascending order.
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
/* The version of this header. It works with a library of the same major and minor version. */
#define GRADUS_VERSION_NUMBER (GRADUS_VERSION_MAJOR * 1000000 + GRADUS_VERSION_MINOR * 1000 + GRADUS_VERSION_PATCH)

/* GRADUS_VERSION_NUMBER of the library. */
GRADUS_API int32_t gradus_version(void);
/* One line: version, kernel sets, commit and features. Static. */
GRADUS_API const char *gradus_build_info(void);
/* Size in the library of gradus_NAME_args for op `name`, or of another struct by its name without the prefix
 * ("tensor", "nf4", ...); 0 for an unknown name. For bindings in other languages, which declare the structs. */
GRADUS_API size_t gradus_sizeof(const char *name);

/* ---- status --------------------------------------------------------------------------------- */

typedef int32_t gradus_status;
enum {
  GRADUS_OK = 0,
  GRADUS_INVALID_ARGUMENT = 1, /* an argument is outside its contract; nothing was computed */
  GRADUS_NON_FINITE = 2,       /* a value that must be finite is NaN or infinite */
  GRADUS_OUT_OF_MEMORY = 3,    /* of the device or the host; the context stays usable */
  GRADUS_NO_DRIVER = 4,        /* no usable GPU driver, or no such device */
  GRADUS_DEVICE_LOST = 5,      /* the device failed, and its CUDA context is unusable from now on */
  GRADUS_IO = 6,               /* a file could not be read or written */
  GRADUS_FORMAT = 7,           /* the data that was read is malformed */
  GRADUS_CONFIG = 8,           /* no such preset */
  GRADUS_DRIVER = 12,          /* a driver call failed; the device stays usable */
  GRADUS_UNSUPPORTED = 13,     /* the device cannot run this op */
  GRADUS_BAD_HANDLE = 14,      /* no such context: it was never created, or is destroyed */
  GRADUS_PANIC = 15            /* a bug in gradus; gradus_last_error() says where. The process may go on */
};

/* Name of a status, such as "INVALID_ARGUMENT". Static, never NULL. */
GRADUS_API const char *gradus_status_string(gradus_status status);
/* Text of the last failed call on this thread, valid until the next one; "" if there was none. */
GRADUS_API const char *gradus_last_error(void);

/* ---- devices -------------------------------------------------------------------------------- */

/* A device with its loaded kernels. A number and not a pointer, so that using a destroyed context is an error. */
typedef uint64_t gradus_context;

/* `device` is "cpu", "cuda" (the first), "cuda:N", or "auto": the first CUDA device if one
 * can run the kernels, else the CPU. Libraries built with the feature `emu` also know "emu:sm80"
 * and "emu:sm90a", which run the GPU kernels on the CPU. */
GRADUS_API gradus_status gradus_create(const char *device, gradus_context *ctx);
/* Waits for the context's work and releases it. 0 is legal and does nothing. */
GRADUS_API gradus_status gradus_destroy(gradus_context ctx);
/* Writes the product name of the device: at most `size` bytes, with the final NUL. */
GRADUS_API gradus_status gradus_device_name(gradus_context ctx, char *name, size_t size);

/* Device memory, for programs without an allocator of their own. On the CPU device it is host memory. */
GRADUS_API gradus_status gradus_alloc(gradus_context ctx, size_t bytes, void **memory);
GRADUS_API gradus_status gradus_free(gradus_context ctx, void *memory);
/* Copies in stream order. upload may return before the copy is done; download waits for it. */
GRADUS_API gradus_status gradus_upload(gradus_context ctx, void *stream, void *device, const void *host, size_t bytes);
GRADUS_API gradus_status gradus_download(gradus_context ctx, void *stream, void *host, const void *device, size_t bytes);
/* Waits until all work of the stream is done. */
GRADUS_API gradus_status gradus_synchronize(gradus_context ctx, void *stream);

/* Bytes of device memory that op `name` needs besides its operands; 0 on the CPU device. `args` is the struct of
 * the op. The memory of its tensors is not accessed. */
GRADUS_API gradus_status gradus_workspace_size(gradus_context ctx, const char *name, const void *args, size_t *bytes);
/* Allocates `bytes` bytes of scratch memory for a stream. An op that needs no more than that allocates nothing. */
GRADUS_API gradus_status gradus_reserve(gradus_context ctx, void *stream, size_t bytes);

/* The type of GOMP_parallel in the OpenMP runtimes of GNU and LLVM. It calls body(data) on every thread of a team,
 * the calling thread included, and returns when all have returned. The library passes 0 for `threads`, which
 * means as many as the team has, and 0 for `flags`. */
typedef void (*gradus_team)(void (*body)(void *data), void *data, unsigned threads, unsigned flags);
/* Sets the threads that the CPU device computes on, for the whole process. NULL, the default, means the threads of
 * the library. For programs with a thread pool of their own, which would compete with that of the library for
 * the cores. Results do not depend on it. `run` must stay callable until another one is set. */
GRADUS_API gradus_status gradus_set_team(gradus_team run);

/* ---- tensors -------------------------------------------------------------------------------- */

enum gradus_dtype {
  GRADUS_U8 = 0,
  GRADUS_I32 = 1,
  GRADUS_I64 = 2,
  GRADUS_F16 = 3,
  GRADUS_BF16 = 4,
  GRADUS_F32 = 5,
  GRADUS_F64 = 6
};
enum gradus_memory {
  GRADUS_HOST = 0,
  GRADUS_DEVICE = 1 /* of the GPU of the context */
};

/* A tensor, borrowed for the call. If all fields are zero there is no tensor. */
typedef struct gradus_tensor {
  void *data;
  int32_t dtype;      /* gradus_dtype */
  int32_t memory;     /* gradus_memory, default GRADUS_HOST */
  int32_t rank;       /* 1 to 4 */
  int32_t reserved;   /* 0 */
  int64_t shape[4];   /* the first `rank` are used */
  int64_t strides[4]; /* in elements; 0 repeats one element */
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

/* The code book of a 4-bit weight. */
enum gradus_quant_type { GRADUS_NF4 = 0, GRADUS_FP4 = 1 };

/* A 4-bit matrix [N, K] in the layout of bitsandbytes; the field names are those of its QuantState. */
typedef struct gradus_nf4 {
  gradus_tensor packed;           /* u8 [ceil(N K / 2)], the first of two codes in the high nibble */
  gradus_tensor absmax;           /* f32 [blocks], or u8 [blocks] with double quantization */
  gradus_tensor quant_map;        /* f32 [16] values of the codes */
  gradus_tensor nested_absmax;    /* f32 [ceil(blocks / nested_blocksize)]; only with u8 absmax, like all nested_* */
  gradus_tensor nested_quant_map; /* f32 [256] */
  int64_t n, k;
  int64_t blocksize;        /* values per maximum: a power of two, 32 to 4,096 */
  int64_t nested_blocksize; /* maxima per nested maximum; in bitsandbytes 256 */
  double offset;            /* added to every decoded maximum */
  int32_t dtype;            /* gradus_dtype of the original weight and of decoded values: F32, BF16 or F16 */
  int32_t reserved;         /* 0 */
} gradus_nf4;

/* Fills n, k, blocksize, nested_blocksize, offset and dtype from the JSON of bitsandbytes, which a checkpoint
 * holds as `<weight>.quant_state.bitsandbytes__nf4` (or `__fp4`). The tensors of w stay unchanged. */
GRADUS_API gradus_status gradus_nf4_parse(const uint8_t *quant_state, size_t bytes, gradus_nf4 *w);
/* Writes the 16 values of a code book. */
GRADUS_API gradus_status gradus_nf4_code(int32_t quant_type, float *values);
/* Writes the 256 values of the dynamic map of bitsandbytes, signed (1) or unsigned (0). */
GRADUS_API gradus_status gradus_dynamic_map(int32_t is_signed, float *values);

/* A LoRA adapter: the product gets scale (X A^T) B^T added. */
typedef struct gradus_lora {
  gradus_tensor a; /* F [r, K] */
  gradus_tensor b; /* F [N, r] */
  double scale;    /* usually alpha / r */
} gradus_lora;

/* ---- ops ------------------------------------------------------------------------------------ */

#include "gradus/vocabulary.h" /* log-probs, divergences and samples over the vocabulary */
#include "gradus/policy.h"     /* losses, advantages, importance weights, reductions */
#include "gradus/products.h"   /* matrix products with dense and 4-bit weights, adapters */
#include "gradus/quantize.h"   /* quantization to 4 bits and back */
#include "gradus/decoder.h"    /* norms, rotary embedding, attention, activations, rows */
#include "gradus/optim.h"      /* optimizers, statistics of weights and gradients */

#ifdef __cplusplus
}
#endif
#endif
