/* Preloaded into a run: counts the calls with which it changes files, and ends it, or fails, at one
   of them.
     SHIM_AT      the call, counted from 1
     SHIM_ERRNO   fail with this number instead of being killed
     SHIM_COUNT   a file that gets the number of calls at the end
     SHIM_TRACE   a file that gets the name of each call */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;
static long at, error;
static int trace = -1;
static pid_t owner;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

/* Not through the functions below. */
static void put(int fd, const char *text, long n) {
    char line[80];
    int length = snprintf(line, sizeof line, "%s%ld\n", text, n);
    syscall(SYS_write, fd, line, length);
}

static int create(const char *name) {
    const char *path = getenv(name);
    return path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
}

__attribute__((constructor)) static void begin(void) {
    at = number("SHIM_AT");
    error = number("SHIM_ERRNO");
    trace = create("SHIM_TRACE");
    owner = getpid();
}

__attribute__((destructor)) static void end(void) {
    int fd = create("SHIM_COUNT");
    if (fd >= 0 && getpid() == owner) put(fd, "", atomic_load(&calls));
}

/* Whether this call is to fail; does not return if it is the last one. */
static int due(const char *name) {
    if (getpid() != owner) return 0;
    long n = atomic_fetch_add(&calls, 1) + 1;
    if (trace >= 0) put(trace, name, n);
    if (n != at) return 0;
    if (error) {
        errno = (int)error;
        return 1;
    }
    for (;;) kill(owner, SIGKILL);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(type, name, parameters, arguments)                \
    type name parameters {                                     \
        if (due(#name " ")) return -1;                         \
        return REAL(name) arguments;                           \
    }

CALL(int, rename, (const char *a, const char *b), (a, b))
CALL(int, renameat, (int f, const char *a, int g, const char *b), (f, a, g, b))
CALL(int, unlink, (const char *p), (p))
CALL(int, unlinkat, (int d, const char *p, int f), (d, p, f))
CALL(int, rmdir, (const char *p), (p))
CALL(int, mkdir, (const char *p, mode_t m), (p, m))
CALL(int, symlink, (const char *a, const char *b), (a, b))
CALL(int, fsync, (int f), (f))
CALL(int, fdatasync, (int f), (f))
CALL(int, ftruncate, (int f, off_t n), (f, n))
CALL(int, ftruncate64, (int f, off64_t n), (f, n))
CALL(int, chmod, (const char *p, mode_t m), (p, m))
CALL(int, fchmod, (int f, mode_t m), (f, m))
CALL(ssize_t, copy_file_range, (int a, off64_t *x, int b, off64_t *y, size_t n, unsigned f), (a, x, b, y, n, f))

/* What a person sees is no file. */
ssize_t write(int fd, const void *data, size_t n) {
    if (fd > 2 && due("write ")) return -1;
    return REAL(write)(fd, data, n);
}
ssize_t writev(int fd, const struct iovec *data, int n) {
    if (fd > 2 && due("writev ")) return -1;
    return REAL(writev)(fd, data, n);
}

#define OPEN(name, parameters, arguments)                      \
    int name parameters {                                      \
        va_list list;                                          \
        va_start(list, flags);                                 \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list);                                          \
        if (flags & (O_CREAT | O_WRONLY | O_RDWR) && due(#name " ")) return -1; \
        return REAL(name) arguments;                           \
    }
OPEN(open, (const char *p, int flags, ...), (p, flags, mode))
OPEN(open64, (const char *p, int flags, ...), (p, flags, mode))
OPEN(openat, (int d, const char *p, int flags, ...), (d, p, flags, mode))
OPEN(openat64, (int d, const char *p, int flags, ...), (d, p, flags, mode))

/* An exchange of two names has no function of its own in every C library. */
long syscall(long n, ...) {
    va_list list;
    va_start(list, n);
    long a[6];
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    static long (*real)(long, ...);
    if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (n == SYS_renameat2 && due("renameat2 ")) return -1;
    return real(n, a[0], a[1], a[2], a[3], a[4], a[5]);
}
