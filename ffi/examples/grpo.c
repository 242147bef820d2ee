/* One GRPO step's arithmetic through the C ABI: advantages of two groups, the clipped policy loss with its
 * gradient over packed sequences, and a product with a 4-bit weight. `grpo [device]`, default cpu. */
#include "gradus.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(call) \
  do { \
    if ((call) != GRADUS_OK) { fprintf(stderr, "%s\n", gradus_last_error()); exit(1); } \
  } while (0)
#define INIT(op, args) CHECK(gradus_init(op, &(args), sizeof(args)))
#define F32(data, n) gradus_vector(data, GRADUS_F32, n)
#define I64(data, n) gradus_vector(data, GRADUS_I64, n)

enum { SAMPLES = 4, TOKENS = 8, M = 2, N = 8, K = 64 };

static void expect(const char *what, double got, double want) {
  printf("%-28s %9.6f\n", what, got);
  if (!(fabs(got - want) < 1e-5)) { fprintf(stderr, "%s: expected %f\n", what, want); exit(1); }
}

static void policy(gradus_context ctx) {
  float reward[SAMPLES] = {1, 0, 0, 1}, advantage[SAMPLES], weight[SAMPLES], logp[TOKENS], old[TOKENS], dlogp[TOKENS];
  int64_t groups[] = {0, 2, 4}, tokens[] = {0, 3, 4, 6, 8}, lengths[] = {3, 1, 2, 2};
  double loss, weights[SAMPLES];
  gradus_group_advantage_args a;
  INIT("group_advantage", a);
  a.reward = F32(reward, SAMPLES), a.offsets = I64(groups, 3), a.advantage = F32(advantage, SAMPLES);
  CHECK(gradus_group_advantage(ctx, NULL, &a));
  expect("advantage of a right answer", advantage[0], 0.5 / (sqrt(0.5) + 1e-4));

  CHECK(gradus_seq_weights(GRADUS_TOKEN_MEAN, 1, 0, lengths, SAMPLES, weights));
  for (int i = 0; i < SAMPLES; ++i) weight[i] = (float)weights[i];
  for (int t = 0; t < TOKENS; ++t) logp[t] = -1, old[t] = t == 0 ? -2.0f : -1.0f; /* one ratio is e, beyond the clip */
  gradus_policy_stats stats;
  gradus_policy_loss_args p;
  INIT("policy_loss", p);
  p.logp = F32(logp, TOKENS), p.old_logp = F32(old, TOKENS), p.advantage = F32(advantage, SAMPLES);
  p.cu_seqlens = I64(tokens, SAMPLES + 1), p.seq_weight = F32(weight, SAMPLES), p.dlogp = F32(dlogp, TOKENS);
  p.loss = &loss, p.stats = &stats;
  CHECK(gradus_policy_loss(ctx, NULL, &p));
  /* -(1.2 + 1 + 1 + -1 + -1 + -1 + 1 + 1) A / 8 */
  expect("policy loss", loss, -2.2 * advantage[0] / 8);
  expect("gradient of a clipped token", dlogp[0], 0);
  expect("gradient of another", dlogp[1], -advantage[0] / 8);
  expect("tokens that were clipped", (double)stats.n_clip_hi, 1);
}

static void product(gradus_context ctx) {
  static float w[N * K], x[M * K], y[M * N], absmax[N], code[16];
  static uint8_t packed[N * K / 2];
  for (int i = 0; i < N * K; ++i) w[i] = i % 2 ? -1.0f : 1.0f; /* 4 bits hold these exactly */
  for (int i = 0; i < M * K; ++i) x[i] = i % 2 ? -0.5f : 0.5f;
  gradus_nf4_quantize_args q;
  INIT("nf4_quantize", q);
  q.x = gradus_matrix(w, GRADUS_F32, N, K), q.packed = gradus_vector(packed, GRADUS_U8, N * K / 2), q.absmax = F32(absmax, N);
  CHECK(gradus_nf4_quantize(ctx, NULL, &q));
  CHECK(gradus_nf4_code(GRADUS_NF4, code));
  gradus_nf4 weight = {q.packed, q.absmax, F32(code, 16), {0}, {0}, N, K, q.blocksize, 0, 0, GRADUS_F32, 0};
  gradus_nf4_matmul_args m;
  INIT("nf4_matmul", m);
  m.x = gradus_matrix(x, GRADUS_F32, M, K), m.w = &weight, m.y = gradus_matrix(y, GRADUS_F32, M, N);
  CHECK(gradus_nf4_matmul(ctx, NULL, &m));
  expect("4-bit product", y[M * N - 1], 0.5 * K);
}

int main(int argc, char **argv) {
  gradus_context ctx = 0;
  CHECK(gradus_create(argc > 1 ? argv[1] : "cpu", &ctx));
  policy(ctx);
  product(ctx);
  CHECK(gradus_destroy(ctx));
  return 0;
}
