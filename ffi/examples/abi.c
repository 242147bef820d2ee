/* What the header promises of bad calls: a status, a text that names the argument, nothing written, and
 * a process that lives. Also structs of an older and of a newer header. */
#include "gradus.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T = 4, V = 8 };
static float logits[T * V], logp[T], other[T * V];
static int32_t targets[T] = {1, 2, 3, 4};
static gradus_context ctx;
static int cases, failures;

static void check(const char *what, gradus_status got, gradus_status want, const char *needle) {
  const char *text = gradus_last_error();
  ++cases;
  if (got == want && (want == GRADUS_OK || strstr(text, needle))) return;
  ++failures;
  fprintf(stderr, "%s: status %s, expected %s and `%s` in: %s\n", what, gradus_status_string(got), gradus_status_string(want), needle, text);
}

static gradus_logprob_args good(void) {
  gradus_logprob_args a;
  check("init", gradus_init("logprob", &a, sizeof a), GRADUS_OK, "");
  a.logits = gradus_matrix(logits, GRADUS_F32, T, V), a.targets = gradus_vector(targets, GRADUS_I32, T);
  a.vocab = V, a.logp = gradus_vector(logp, GRADUS_F32, T);
  return a;
}

/* Runs a changed call, which has to be refused for `argument`, then a good one. */
static void refuse(const char *what, gradus_logprob_args a, const char *argument) {
  char needle[64];
  for (int i = 0; i < T; ++i) logp[i] = 7;
  snprintf(needle, sizeof needle, "argument `%s`: got ", argument);
  check(what, gradus_logprob(ctx, NULL, &a), GRADUS_INVALID_ARGUMENT, needle);
  for (int i = 0; i < T; ++i) check("outputs are kept", logp[i] == 7 ? GRADUS_OK : GRADUS_PANIC, GRADUS_OK, "");
  a = good();
  check("a good call afterwards", gradus_logprob(ctx, NULL, &a), GRADUS_OK, "");
  check("its result", fabs(logp[0] + log((double)V)) < 1e-5 ? GRADUS_OK : GRADUS_PANIC, GRADUS_OK, "");
}

#define REFUSE(change, argument) \
  do { gradus_logprob_args a = good(); change; refuse(#change, a, argument); } while (0)

static void tensors(void) {
  REFUSE(memset(&a.logits, 0, sizeof a.logits), "logits");
  REFUSE(memset(&a.targets, 0, sizeof a.targets), "targets");
  REFUSE(memset(&a.logp, 0, sizeof a.logp), "logp");
  REFUSE(a.logits.data = NULL, "logits.data");
  REFUSE(a.logits.data = (char *)logits + 1, "logits.data");
  REFUSE(a.logits.dtype = 99, "logits.dtype");
  REFUSE(a.logits.dtype = -1, "logits.dtype");
  REFUSE(a.logits.dtype = GRADUS_I64, "logits.dtype");
  REFUSE(a.targets.dtype = GRADUS_I64, "targets.dtype");
  REFUSE(a.logp.dtype = GRADUS_F64, "logp.dtype");
  REFUSE(a.logits.memory = GRADUS_DEVICE, "logits.memory");
  REFUSE(a.logits.memory = 7, "logits.memory");
  REFUSE(a.logits.rank = 5, "logits.rank");
  REFUSE(a.logits.rank = -1, "logits.rank");
  REFUSE(a.logits.rank = 1, "logits");
  REFUSE(a.logits.shape[0] = -1, "logits.shape");
  REFUSE(a.logits.shape[0] = INT64_MAX, "logits.shape");
  REFUSE(a.logits.shape[1] = (int64_t)1 << 60, "logits.shape");
  REFUSE(a.logits.strides[0] = -8, "logits.strides");
  REFUSE(a.logits.strides[1] = 2; a.logits.shape[1] = V / 2; a.vocab = V / 2, "logits");
  REFUSE(a.logp.strides[0] = 0, "logp.strides");
  REFUSE(a.targets.shape[0] = T - 1, "targets");
  REFUSE(a.logp.shape[0] = T - 1, "logp");
  REFUSE(a.logp.data = logits, "logp");
  REFUSE(a.lse = a.logp, "logp");
  REFUSE(a.entropy = gradus_vector(other, GRADUS_F32, T + 1), "entropy");
  REFUSE(a.top1 = gradus_vector(other, GRADUS_F32, T), "top1.dtype");
}

static void settings(void) {
  REFUSE(a.vocab = 0, "vocab");
  REFUSE(a.vocab = -5, "vocab");
  REFUSE(a.vocab = V + 1, "vocab");
  REFUSE(a.vocab = 3, "targets");
  REFUSE(a.transform.temperature = 0, "transform.temperature");
  REFUSE(a.transform.temperature = -1, "transform.temperature");
  REFUSE(a.transform.temperature = NAN, "transform.temperature");
  REFUSE(a.transform.scale = 0, "transform.scale");
  REFUSE(a.transform.scale = INFINITY, "transform.scale");
  REFUSE(a.transform.softcap = 0, "transform.softcap");
  REFUSE(a.transform.softcap = NAN, "transform.softcap");
  targets[2] = V;
  { gradus_logprob_args a = good(); check("a target beyond V", gradus_logprob(ctx, NULL, &a), GRADUS_INVALID_ARGUMENT, "targets"); }
  targets[2] = -1;
  { gradus_logprob_args a = good(); check("a negative target", gradus_logprob(ctx, NULL, &a), GRADUS_INVALID_ARGUMENT, "targets"); }
  targets[2] = GRADUS_IGNORE;
  { gradus_logprob_args a = good(); check("an ignored target", gradus_logprob(ctx, NULL, &a), GRADUS_OK, ""); }
  targets[2] = 3;
}

static void structs(void) {
  REFUSE(a.struct_size = 0, "struct_size");
  REFUSE(a.struct_size = 7, "struct_size");
  REFUSE(a.struct_size = 1 << 20, "struct_size");
  struct { gradus_logprob_args a; double added; } newer = {good(), 0};
  newer.a.struct_size = sizeof newer;
  check("a newer struct whose new field is 0", gradus_logprob(ctx, NULL, &newer.a), GRADUS_OK, "");
  newer.added = 1;
  check("and set", gradus_logprob(ctx, NULL, &newer.a), GRADUS_INVALID_ARGUMENT, "struct_size");
  /* A header that had no log_sum_sq and no top1, and one that had no transform either. */
  gradus_logprob_args older = good();
  older.struct_size = offsetof(gradus_logprob_args, log_sum_sq);
  memset(&older.log_sum_sq, 0xAA, sizeof older.log_sum_sq + sizeof older.top1);
  check("an older struct", gradus_logprob(ctx, NULL, &older), GRADUS_OK, "");
  check("one without its output", (older.struct_size = offsetof(gradus_logprob_args, logp), gradus_logprob(ctx, NULL, &older)), GRADUS_INVALID_ARGUMENT, "logp");
  check("no struct", gradus_logprob(ctx, NULL, NULL), GRADUS_INVALID_ARGUMENT, "args");
  check("init of an unknown op", gradus_init("logprobs", &older, sizeof older), GRADUS_INVALID_ARGUMENT, "name");
  check("init of nothing", gradus_init("logprob", NULL, 8), GRADUS_INVALID_ARGUMENT, "args");
}

static void handles(void) {
  gradus_logprob_args a = good();
  gradus_context second = 0, none = 0;
  void *memory = NULL;
  check("no such device", gradus_create("tpu", &second), GRADUS_INVALID_ARGUMENT, "device");
  check("no device", gradus_create(NULL, &second), GRADUS_INVALID_ARGUMENT, "device");
  check("no place for a context", gradus_create("cpu", NULL), GRADUS_INVALID_ARGUMENT, "ctx");
  check("a context of nobody", gradus_logprob(12345, NULL, &a), GRADUS_BAD_HANDLE, "ctx");
  check("context 0", gradus_logprob(none, NULL, &a), GRADUS_BAD_HANDLE, "ctx");
  check("a stream on the CPU", gradus_logprob(ctx, &memory, &a), GRADUS_INVALID_ARGUMENT, "stream");
  check("create", gradus_create("cpu", &second), GRADUS_OK, "");
  check("destroy", gradus_destroy(second), GRADUS_OK, "");
  check("destroy again", gradus_destroy(second), GRADUS_BAD_HANDLE, "ctx");
  check("use after destroy", gradus_logprob(second, NULL, &a), GRADUS_BAD_HANDLE, "ctx");
  check("destroy nothing", gradus_destroy(0), GRADUS_OK, "");
  check("alloc", gradus_alloc(ctx, 16, &memory), GRADUS_OK, "");
  check("free", gradus_free(ctx, memory), GRADUS_OK, "");
  check("free again", gradus_free(ctx, memory), GRADUS_INVALID_ARGUMENT, "memory");
  check("free of a stranger", gradus_free(ctx, logits), GRADUS_INVALID_ARGUMENT, "memory");
  check("too much memory", gradus_alloc(ctx, (size_t)1 << 62, &memory), GRADUS_OUT_OF_MEMORY, "gradus_alloc");
}

int main(void) {
  check("create", gradus_create("cpu", &ctx), GRADUS_OK, "");
  if (gradus_version() / 1000 != GRADUS_VERSION_NUMBER / 1000) ++failures;
  tensors();
  settings();
  structs();
  handles();
  check("destroy", gradus_destroy(ctx), GRADUS_OK, "");
  printf("%d checks, %d failures\n", cases, failures);
  return failures != 0;
}
