/* Loaded before the C library: counts what changes files under one folder, and spoils the n-th such call.
 *
 * Every library in the process is subject to it, not only Python's. Spoiled is: failing with an errno, once or from
 * then on, or the end of the process, as by a power cut before the call. Each call is noted in a log. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static int log_file = -1, nth, failure, lasting;
static atomic_int count;

/* Begin: a failure is an errno, or minus a signal. */
void faults_arm(const char *under, int log, int which, int how, int on) {
    snprintf(folder, sizeof folder, "%s/", under);
    log_file = log, nth = which, failure = how, lasting = on;
    atomic_store(&count, 0);
}

static int spoil(const char *what, const char *path) {
    if (log_file < 0 || strncmp(path, folder, strlen(folder)) != 0) return 0;
    int now = atomic_fetch_add(&count, 1) + 1;
    char line[4200];
    int length = snprintf(line, sizeof line, "%s %s\n", what, path + strlen(folder));
    syscall(SYS_write, log_file, line, length);
    if (nth == 0 || (lasting ? now < nth : now != nth)) return 0;
    if (failure < 0) syscall(SYS_kill, getpid(), -failure);
    errno = failure;
    return failure > 0;
}

static int spoil_open(const char *what, int file) {
    char name[64], path[4096];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = log_file < 0 ? -1 : readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return spoil(what, path);
}

#define NEXT(name) __typeof__(name) *next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & O_CREAT; }

#define MODE                                  \
    mode_t mode = 0;                          \
    if (flags & (O_CREAT | __O_TMPFILE)) {    \
        va_list rest;                         \
        va_start(rest, flags);                \
        mode = va_arg(rest, mode_t);          \
        va_end(rest);                         \
    }
#define OPEN(name)                                                  \
    int name(const char *path, int flags, ...) {                    \
        MODE NEXT(name);                                            \
        if (changes(flags) && spoil("open", path)) return -1;       \
        return next(path, flags, mode);                             \
    }
#define OPENAT(name)                                                \
    int name(int at, const char *path, int flags, ...) {            \
        MODE NEXT(name);                                            \
        if (changes(flags) && spoil("open", path)) return -1;       \
        return next(at, path, flags, mode);                         \
    }
#define FOPEN(name)                                                      \
    FILE *name(const char *path, const char *mode) {                     \
        NEXT(name);                                                      \
        if (mode[0] != 'r' && spoil("open", path)) return NULL;          \
        return next(path, mode);                                         \
    }
#define ON_FILE(name, what, result, ...)                                    \
    result name(int file, __VA_ARGS__) {                                    \
        NEXT(name);                                                         \
        if (spoil_open(what, file)) return -1;

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

ON_FILE(write, "write", ssize_t, const void *data, size_t size) return next(file, data, size); }
ON_FILE(writev, "write", ssize_t, const struct iovec *parts, int number) return next(file, parts, number); }
ON_FILE(pwrite, "write", ssize_t, const void *data, size_t size, off_t at) return next(file, data, size, at); }
ON_FILE(pwrite64, "write", ssize_t, const void *data, size_t size, off64_t at) return next(file, data, size, at); }
ON_FILE(ftruncate, "truncate", int, off_t size) return next(file, size); }
ON_FILE(ftruncate64, "truncate", int, off64_t size) return next(file, size); }

size_t fwrite(const void *data, size_t size, size_t number, FILE *stream) {
    NEXT(fwrite);
    return spoil_open("write", fileno(stream)) ? 0 : next(data, size, number, stream);
}

int fsync(int file) {
    NEXT(fsync);
    return spoil_open("sync", file) ? -1 : next(file);
}

int fdatasync(int file) {
    NEXT(fdatasync);
    return spoil_open("sync", file) ? -1 : next(file);
}

int close(int file) {
    NEXT(close);
    int flags = log_file < 0 ? O_RDONLY : fcntl(file, F_GETFL);
    int spoiled = flags >= 0 && changes(flags) && spoil_open("close", file);
    int result = next(file);
    if (!spoiled) return result;
    errno = failure;
    return -1;
}

int rename(const char *from, const char *to) {
    NEXT(rename);
    return spoil("rename", to) ? -1 : next(from, to);
}

int renameat(int at, const char *from, int other, const char *to) {
    NEXT(renameat);
    return spoil("rename", to) ? -1 : next(at, from, other, to);
}

int mkdir(const char *path, mode_t mode) {
    NEXT(mkdir);
    return spoil("mkdir", path) ? -1 : next(path, mode);
}

int chmod(const char *path, mode_t mode) {
    NEXT(chmod);
    return spoil("chmod", path) ? -1 : next(path, mode);
}
