/* Quantization of weights to 4 bits, and back. Included by gradus.h. */
#ifndef GRADUS_QUANTIZE_H
#define GRADUS_QUANTIZE_H

/* Quantizes a weight block by block. Codes and absolute maxima have the bits of bitsandbytes. */
typedef struct gradus_nf4_quantize_args {
  size_t struct_size;
  gradus_tensor x;    /* in f32, bf16 or f16 [N, K] */
  int32_t quant_type; /* gradus_quant_type, default GRADUS_NF4 */
  int32_t reserved;
  int64_t blocksize;    /* default 64 */
  gradus_tensor packed; /* out u8 [ceil(N K / 2)] */
  gradus_tensor absmax; /* out f32 [ceil(N K / blocksize)] */
} gradus_nf4_quantize_args;
GRADUS_API gradus_status gradus_nf4_quantize(gradus_context ctx, void *stream, const gradus_nf4_quantize_args *args);

/* Double quantization: quantizes the absolute maxima themselves, in blocks of 256. */
typedef struct gradus_nf4_quantize_absmax_args {
  size_t struct_size;
  gradus_tensor absmax;           /* in f32 [blocks] */
  gradus_tensor nested_quant_map; /* in f32 [256]: gradus_dynamic_map(1, ...) */
  gradus_tensor codes;            /* out u8 [blocks] */
  gradus_tensor nested_absmax;    /* out f32 [ceil(blocks / 256)] */
  double *offset;                 /* out: the mean of absmax */
} gradus_nf4_quantize_absmax_args;
GRADUS_API gradus_status gradus_nf4_quantize_absmax(gradus_context ctx, void *stream, const gradus_nf4_quantize_absmax_args *args);

/* The values of a 4-bit weight. */
typedef struct gradus_nf4_dequantize_args {
  size_t struct_size;
  const gradus_nf4 *w; /* in [N, K] */
  gradus_tensor y;     /* out F [N, K] */
} gradus_nf4_dequantize_args;
GRADUS_API gradus_status gradus_nf4_dequantize(gradus_context ctx, void *stream, const gradus_nf4_dequantize_args *args);

#endif
