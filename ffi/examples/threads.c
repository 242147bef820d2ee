/* 16 threads, 1,000 calls each, on one context and on contexts of their own: the bits do not change, and a
 * failure's text belongs to the thread that failed. Calls of a thread's destructors are calls as any. Then the
 * program lends the library its own threads. */
#include "gradus.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { THREADS = 16, CALLS = 1000, ROWS = 8, COLUMNS = 64 };
static float x[ROWS * COLUMNS], w[ROWS * COLUMNS], want[ROWS * ROWS];
static gradus_context shared;

static gradus_status product(gradus_context ctx, float *y, int64_t columns) {
  gradus_matmul_args a;
  gradus_status status = gradus_init("matmul", &a, sizeof a);
  if (status) return status;
  a.x = gradus_matrix(x, GRADUS_F32, ROWS, COLUMNS), a.w = gradus_matrix(w, GRADUS_F32, ROWS, columns);
  a.y = gradus_matrix(y, GRADUS_F32, ROWS, ROWS);
  return gradus_matmul(ctx, NULL, &a);
}

static void *work(void *number) {
  float y[ROWS * ROWS];
  char expected[32];
  long wrong = 0, columns = 1 + *(int *)number;
  snprintf(expected, sizeof expected, "[8, %ld]", columns);
  for (int i = 0; i < CALLS; ++i) {
    gradus_context own = 0;
    if (i % 8 == 0) wrong += gradus_create("cpu", &own) != GRADUS_OK;
    wrong += product(own ? own : shared, y, COLUMNS) != GRADUS_OK || memcmp(y, want, sizeof y) != 0;
    wrong += product(shared, y, columns) != GRADUS_INVALID_ARGUMENT || !strstr(gradus_last_error(), expected);
    wrong += gradus_destroy(own) != GRADUS_OK;
  }
  return (void *)(intptr_t)wrong;
}

struct job {
  void (*body)(void *);
  void *data;
};
static long lendings;

static void *help(void *job) {
  ((struct job *)job)->body(((struct job *)job)->data);
  return NULL;
}

/* A team of two. */
static void two(void (*body)(void *), void *data, unsigned number, unsigned flags) {
  struct job job = {body, data};
  pthread_t other;
  int alone = pthread_create(&other, NULL, help, &job);
  lendings += number == 0 && flags == 0;
  body(data);
  if (!alone) pthread_join(other, NULL);
}

/* The bits of a product that is worth two threads, on the library's threads and on ours. */
static long lent(void) {
  enum { M = 256, K = 512 };
  static float big[M * K], own[M * M], ours[M * M];
  gradus_matmul_args a;
  long wrong = gradus_init("matmul", &a, sizeof a) != GRADUS_OK;
  for (int i = 0; i < M * K; ++i) big[i] = (float)(i * 11 % 37) / 37;
  a.x = a.w = gradus_matrix(big, GRADUS_F32, M, K);
  a.y = gradus_matrix(own, GRADUS_F32, M, M);
  wrong += gradus_matmul(shared, NULL, &a) != GRADUS_OK || lendings;
  a.y = gradus_matrix(ours, GRADUS_F32, M, M);
  wrong += gradus_set_team(two) != GRADUS_OK || gradus_matmul(shared, NULL, &a) != GRADUS_OK || !lendings;
  return wrong + (gradus_set_team(NULL) != GRADUS_OK) + (memcmp(own, ours, sizeof own) != 0);
}

/* A thread's last words: runs after the thread's own storage has been torn down. */
static void last_words(void *wrong) {
  float y[ROWS * ROWS];
  gradus_lerp_args a;
  *(long *)wrong += gradus_init("lerp", &a, sizeof a) != GRADUS_OK;
  *(long *)wrong += gradus_lerp(0, NULL, &a) != GRADUS_BAD_HANDLE || !strstr(gradus_last_error(), "gradus_create");
  *(long *)wrong += product(shared, y, COLUMNS) != GRADUS_OK || memcmp(y, want, sizeof y) != 0;
  *(long *)wrong += product(shared, y, 1) != GRADUS_INVALID_ARGUMENT || !strstr(gradus_last_error(), "[8, 1]");
  *(long *)wrong -= 1; /* of the one that says they were spoken */
}

static pthread_key_t key;

static void *mortal(void *wrong) {
  pthread_setspecific(key, wrong);
  /* With and without a call before the end. */
  if (*(long *)wrong > 1) *(long *)wrong -= gradus_lerp(0, NULL, NULL) == GRADUS_BAD_HANDLE;
  return NULL;
}

static long destructors(void) {
  long wrong[2] = {1, 2};
  pthread_t thread;
  if (pthread_key_create(&key, last_words)) return 1;
  for (int i = 0; i < 2; ++i) {
    if (pthread_create(&thread, NULL, mortal, &wrong[i])) return 1;
    pthread_join(thread, NULL);
  }
  return wrong[0] + wrong[1];
}

int main(void) {
  pthread_t threads[THREADS];
  int numbers[THREADS];
  long wrong = 0;
  for (int i = 0; i < ROWS * COLUMNS; ++i) x[i] = (float)(i * 7 % 31) / 31, w[i] = (float)(i * 5 % 29) / 29;
  if (gradus_create("cpu", &shared) || product(shared, want, COLUMNS)) return puts(gradus_last_error());
  for (int i = 0; i < THREADS; ++i) numbers[i] = i, pthread_create(&threads[i], NULL, work, &numbers[i]);
  for (int i = 0; i < THREADS; ++i) {
    void *found;
    pthread_join(threads[i], &found);
    wrong += (long)(intptr_t)found;
  }
  wrong += destructors();
  wrong += lent();
  printf("%d calls, %ld wrong\n", THREADS * CALLS * 2, wrong);
  return gradus_destroy(shared) != GRADUS_OK || wrong;
}
