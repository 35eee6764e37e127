/* Faults of the operating system, on demand: an LD_PRELOAD library for Linux.

It counts the operations of a process on files below one folder, whoever makes them: Python, polars, safetensors. At the
operation that the plan names it kills the process, sends it a signal, or lets the operation fail with an error number.
It can also write every operation into a trace, with the bytes that were written, from which a power loss is replayed.
The plan lies in memory that forked processes share, so the count is known after a kill. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* classes of operations, see CLASSES in bench.py */
enum { CREATE = 1, WRITE = 2, SYNC = 4, RENAME = 8, REMOVE = 16, FOLDER = 32, MODE = 64, LOCK = 128, OPEN = 256, READ = 512 };
/* what happens at the operation `at`, see ACTIONS in bench.py */
enum { NOTHING, KILL, TEAR, SIGNAL, FAIL, FAIL_ON, FULL };

struct plan {
    long count;   /* operations so far, of the classes */
    long at;      /* the operation at which it happens, from 1 */
    long budget;  /* FULL: bytes that still fit */
    int classes, action, value, trace; /* value: signal or error number; trace: open file, -1 for none */
    int said;     /* FULL: does the file system say how much is free? */
    int hit;      /* class of the operation at which it happened; 0 before */
    long counts[10]; /* operations of each class, whatever `classes` are */
    char root[PATH_MAX];
};

static struct plan *plan;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void prepare(void) {
    plan = mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    plan->trace = -1;
}

struct plan *faults_plan(void) { return plan; }

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int below(const char *path) {
    size_t length = strlen(plan->root);
    return length && !strncmp(path, plan->root, length) && (path[length] == '/' || !path[length]);
}

/* the absolute path of an open file; 0 if it lies elsewhere */
static int of_descriptor(int descriptor, char *found) {
    char link[64];
    if (!plan || !plan->root[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, found, PATH_MAX - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return below(found);
}

static int of_path(int folder, const char *path, char *found) {
    if (!plan || !plan->root[0] || !path) return 0;
    if (path[0] == '/') {
        snprintf(found, PATH_MAX, "%s", path);
        return below(found);
    }
    char place[PATH_MAX];
    if (folder == AT_FDCWD) {
        if (!getcwd(place, sizeof place)) return 0;
    } else {
        of_descriptor(folder, place);
    }
    if ((size_t)snprintf(found, PATH_MAX, "%s/%s", place, path) >= PATH_MAX) return 0;
    return below(found);
}

/* Count one operation. Returns 0 if it may go on, 1 if it fails (errno is set), 2 if half of it is done before the kill. */
static int before(int class) {
    __sync_add_and_fetch(&plan->counts[__builtin_ctz(class)], 1);
    if (!(plan->classes & class)) return 0;
    long number = __sync_add_and_fetch(&plan->count, 1);
    if (plan->action == FULL && plan->budget <= 0 && class & (CREATE | WRITE | FOLDER)) { plan->hit = class; errno = ENOSPC; return 1; }
    if (plan->action == FAIL_ON && number >= plan->at) { plan->hit = class; errno = plan->value; return 1; }
    if (number != plan->at) return 0;
    plan->hit = class;
    if (plan->action == TEAR && class == WRITE) return 2;
    if (plan->action == KILL || plan->action == TEAR) syscall(SYS_kill, getpid(), SIGKILL);
    if (plan->action == SIGNAL) syscall(SYS_kill, getpid(), plan->value);
    if (plan->action == FAIL) { errno = plan->value; return 1; }
    return 0;
}

static void record(const char *what, const char *path, const char *other, long offset, const void *data, long length) {
    if (plan->trace < 0) return;
    int kept = errno;
    char head[2 * PATH_MAX + 80];
    int size = snprintf(head, sizeof head, "%s\t%s\t%s\t%ld\t%ld\n", what, path, other, offset, data ? length : 0);
    pthread_mutex_lock(&one_at_a_time);
    syscall(SYS_write, plan->trace, head, size);
    if (data) syscall(SYS_write, plan->trace, data, length);
    pthread_mutex_unlock(&one_at_a_time);
    errno = kept;
}

/* As `record`, with the whole content of a file: libraries in Rust open and rename some files with system calls of their own,
   which no library sees; what they wrote is known at the latest when it is synchronised or renamed. */
static void record_content(const char *what, const char *path, const char *other, const char *now) {
    if (plan->trace < 0) return;
    int kept = errno;
    struct stat found;
    int file = syscall(SYS_openat, AT_FDCWD, now, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int is_file = file >= 0 && !fstat(file, &found) && S_ISREG(found.st_mode);
    void *data = is_file && found.st_size ? mmap(NULL, found.st_size, PROT_READ, MAP_PRIVATE, file, 0) : NULL;
    if (data == MAP_FAILED) data = NULL;
    record(what, path, other, 0, is_file && !data ? "" : data, data ? found.st_size : 0);
    if (data) munmap(data, found.st_size);
    if (file >= 0) syscall(SYS_close, file);
    errno = kept;
}

/* -- opening */

static int opened(int folder, const char *path, int flags, mode_t mode, int (*real)(int, const char *, int, ...)) {
    char found[PATH_MAX];
    int is_below = of_path(folder, path, found);
    int writes = flags & (O_CREAT | O_TRUNC);
    int is_new = 0;
    if (is_below) {
        if (before(writes ? CREATE : OPEN) == 1) return -1;
        is_new = writes && access(found, F_OK);
    }
    int descriptor = real(folder, path, flags, mode);
    if (is_below && descriptor >= 0 && is_new) record("create", found, "", 0, NULL, 0);
    else if (is_below && descriptor >= 0 && flags & O_TRUNC) record("truncate", found, "", 0, NULL, 0);
    return descriptor;
}

static mode_t mode_of(int flags, va_list more) { return flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0; }

#define OPENING(name, ...)                                                                          \
    {                                                                                               \
        static int (*real)(int, const char *, int, ...);                                            \
        if (!real) real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat");         \
        va_list more;                                                                               \
        va_start(more, flags);                                                                      \
        mode_t mode = mode_of(flags, more);                                                         \
        va_end(more);                                                                               \
        return opened(__VA_ARGS__, path, flags, mode, real);                                        \
    }

int open(const char *path, int flags, ...) OPENING(open, AT_FDCWD)
int open64(const char *path, int flags, ...) OPENING(open64, AT_FDCWD)
int openat(int folder, const char *path, int flags, ...) OPENING(openat, folder)
int openat64(int folder, const char *path, int flags, ...) OPENING(openat64, folder)

/* -- reading */

ssize_t read(int descriptor, void *data, size_t length) {
    REAL(read);
    char found[PATH_MAX];
    if (of_descriptor(descriptor, found) && before(READ) == 1) return -1;
    return real(descriptor, data, length);
}

/* -- writing */

static long position(int descriptor) {
    struct stat now;
    if (fcntl(descriptor, F_GETFL) & O_APPEND) return fstat(descriptor, &now) ? 0 : now.st_size;
    return lseek(descriptor, 0, SEEK_CUR);
}

/* how many of the bytes may be written; -1: it fails */
static ssize_t allowed(size_t length, int *then_kill) {
    int found = before(WRITE);
    if (found == 1) return -1;
    *then_kill = found == 2;
    if (*then_kill) return length / 2;
    if (plan->action == FULL && plan->classes & WRITE) {
        ssize_t fits = plan->budget < (long)length ? plan->budget : (long)length;
        plan->budget -= fits;
        return fits;
    }
    return length;
}

ssize_t write(int descriptor, const void *data, size_t length) {
    REAL(write);
    char found[PATH_MAX];
    if (plan && descriptor == 1) record("say", "", "", 0, data, length);
    if (!of_descriptor(descriptor, found)) return real(descriptor, data, length);
    int then_kill = 0;
    ssize_t fits = allowed(length, &then_kill);
    if (fits < 0) return -1;
    long offset = position(descriptor);
    ssize_t written = real(descriptor, data, fits);
    if (then_kill) syscall(SYS_kill, getpid(), SIGKILL);
    if (written > 0) record("write", found, "", offset, data, written);
    return written;
}

static ssize_t put(int descriptor, const void *data, size_t length, off_t offset, __typeof__(pwrite) *real) {
    char found[PATH_MAX];
    if (!of_descriptor(descriptor, found)) return real(descriptor, data, length, offset);
    int then_kill = 0;
    ssize_t fits = allowed(length, &then_kill);
    if (fits < 0) return -1;
    ssize_t written = real(descriptor, data, fits, offset);
    if (then_kill) syscall(SYS_kill, getpid(), SIGKILL);
    if (written > 0) record("write", found, "", offset, data, written);
    return written;
}

ssize_t pwrite(int descriptor, const void *data, size_t length, off_t offset) {
    REAL(pwrite);
    return put(descriptor, data, length, offset, real);
}

ssize_t pwrite64(int descriptor, const void *data, size_t length, off64_t offset) {
    REAL(pwrite);
    return put(descriptor, data, length, offset, real);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(writev);
    char found[PATH_MAX];
    if (!of_descriptor(descriptor, found)) return real(descriptor, parts, count);
    /* a short write, which the caller continues */
    for (int at = 0; at < count; at++)
        if (parts[at].iov_len) return write(descriptor, parts[at].iov_base, parts[at].iov_len);
    return 0;
}

/* what copies inside the kernel would not be seen: callers fall back to read and write */
ssize_t sendfile(int to, int from, off_t *offset, size_t count) {
    REAL(sendfile);
    char found[PATH_MAX];
    if (of_descriptor(to, found)) { errno = EINVAL; return -1; }
    return real(to, from, offset, count);
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t count) { return sendfile(to, from, offset, count); }

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *into, size_t count, unsigned int flags) {
    REAL(copy_file_range);
    char found[PATH_MAX];
    if (of_descriptor(to, found)) { errno = EXDEV; return -1; }
    return real(from, at, to, into, count, flags);
}

int ftruncate(int descriptor, off_t length) {
    REAL(ftruncate);
    char found[PATH_MAX];
    int is_below = of_descriptor(descriptor, found);
    int how = is_below ? before(WRITE) : 0;
    if (how == 1) return -1;
    int failed = real(descriptor, length);
    if (how == 2) syscall(SYS_kill, getpid(), SIGKILL); /* it has no half: the kill comes right after it */
    if (is_below && !failed) record("truncate", found, "", length, NULL, 0);
    return failed;
}

int ftruncate64(int descriptor, off64_t length) { return ftruncate(descriptor, length); }

/* -- to the disk */

static int synced(int descriptor, int (*real)(int)) {
    char found[PATH_MAX];
    int is_below = of_descriptor(descriptor, found);
    if (is_below && before(SYNC) == 1) return -1;
    int failed = real(descriptor);
    if (is_below && !failed) record_content("sync", found, "", found);
    return failed;
}

int fsync(int descriptor) { REAL(fsync); return synced(descriptor, real); }
int fdatasync(int descriptor) { REAL(fdatasync); return synced(descriptor, real); }

/* -- names */

static int renamed(int from, const char *source, int to, const char *target, unsigned int flags) {
    char one[PATH_MAX], other[PATH_MAX];
    int is_below = of_path(from, source, one) | of_path(to, target, other);
    if (is_below && before(RENAME) == 1) return -1;
    int failed = syscall(SYS_renameat2, from, source, to, target, flags);
    if (is_below && !failed) record_content("rename", one, other, other);
    return failed;
}

int rename(const char *source, const char *target) { return renamed(AT_FDCWD, source, AT_FDCWD, target, 0); }

int renameat(int from, const char *source, int to, const char *target) { return renamed(from, source, to, target, 0); }

int renameat2(int from, const char *source, int to, const char *target, unsigned int flags) {
    return renamed(from, source, to, target, flags);
}

static int removed(int folder, const char *path, int flags) {
    char found[PATH_MAX];
    int is_below = of_path(folder, path, found);
    if (is_below && before(REMOVE) == 1) return -1;
    int failed = syscall(SYS_unlinkat, folder, path, flags);
    if (is_below && !failed) record("remove", found, "", 0, NULL, 0);
    return failed;
}

int unlink(const char *path) { return removed(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return removed(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int folder, const char *path, int flags) { return removed(folder, path, flags); }

static int made(int folder, const char *path, mode_t mode) {
    char found[PATH_MAX];
    int is_below = of_path(folder, path, found);
    if (is_below && before(FOLDER) == 1) return -1;
    int failed = syscall(SYS_mkdirat, folder, path, mode);
    if (is_below && !failed) record("folder", found, "", 0, NULL, 0);
    return failed;
}

int mkdir(const char *path, mode_t mode) { return made(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return made(folder, path, mode); }

int chmod(const char *path, mode_t mode) {
    REAL(chmod);
    char found[PATH_MAX];
    if (of_path(AT_FDCWD, path, found) && before(MODE) == 1) return -1;
    return real(path, mode);
}

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    REAL(fchmodat);
    char found[PATH_MAX];
    if (of_path(folder, path, found) && before(MODE) == 1) return -1;
    return real(folder, path, mode, flags);
}

/* -- locks and room */

int flock(int descriptor, int operation) {
    REAL(flock);
    char found[PATH_MAX];
    if (of_descriptor(descriptor, found) && before(LOCK) == 1) return -1;
    return real(descriptor, operation);
}

int statvfs(const char *path, struct statvfs *found) {
    REAL(statvfs);
    char place[PATH_MAX];
    int failed = real(path, found);
    if (!failed && plan && plan->action == FULL && plan->said && of_path(AT_FDCWD, path, place))
        found->f_bavail = plan->budget / found->f_frsize;
    return failed;
}

int statvfs64(const char *path, struct statvfs64 *found) { return statvfs(path, (struct statvfs *)found); }
