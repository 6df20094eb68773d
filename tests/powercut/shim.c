/*
 * Records every change a program makes to the files of one directory, so that a test can build the
 * disk a power cut would have left behind. Loaded with LD_PRELOAD; Linux, 64 bits.
 *
 *   POWERCUT_DIRECTORY          the directory to watch (everything below it)
 *   POWERCUT_TRACE              the trace file, outside of that directory
 *   POWERCUT_SYNC_MICROSECONDS  optional: a sync sleeps this long instead of reaching the disk. The
 *                               machine of the test keeps its power: real syncs only cost time.
 *
 * Order. One record is one writev() on a descriptor opened with O_APPEND: the kernel holds the
 * inode lock for the whole call, so records of all threads and processes are whole and stand in one
 * total order. When a record is taken decides what that order proves:
 *
 *   - A change (write, truncate, rename, ...) is recorded after the call succeeded and before it
 *     returns to the program.
 *   - A sync is recorded twice: BEGIN before the call, END after it succeeded. At END the changes
 *     recorded before BEGIN are durable, and no others. A change recorded before BEGIN had reached
 *     the kernel before the sync started, so the sync covers it. A change recorded between BEGIN
 *     and END may or may not be covered (a checkpoint syncs the log while another thread appends to
 *     it): it is not counted. One record at the end alone would call such a change durable and hide
 *     a lost commit.
 *   - A change that the kernel has seen but that is recorded only after BEGIN counts as not
 *     covered. The program cannot have relied on it: its call had not returned when the sync began.
 *   - An acknowledgement is an ordinary write to <directory>/ACK. A program writes it after the
 *     sync returned, so END, appended before that return, precedes it; this holds across processes
 *     too, since what carried the news from one to the other happened after END was appended.
 *
 * So at every cut the trace claims at most what the disk would really hold, and every
 * acknowledgement in it had been given. Errors of the model are on the side of losing more. The one
 * order that is not certain is that of two writes to the same bytes at the same time, which no
 * program that locks its files makes.
 *
 * A descriptor is resolved when it is used (fstat, /proc/self/fd), not followed from open() to
 * close(): duplicated, inherited and reused descriptors need no table, and close() needs no
 * interception. For the same reason the trace is opened for each record: a program that closes
 * every descriptor cannot lose it.
 *
 * Calls are made with syscall(): no lookup of the next symbol, nothing to initialise, no recursion.
 * What changes a watched file in a way that cannot be replayed is recorded as OPAQUE, and the
 * replay refuses it.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8 && sizeof(off_t) == 8, "off_t and off64_t must be one type");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the trace is little endian");

#define EXPORT __attribute__((visibility("default")))

/* Numbers shared with records.py. */
enum operation {
    OP_START = 1, OP_CREATE, OP_WRITE, OP_TRUNCATE, OP_ALLOCATE, OP_SYNC_BEGIN, OP_SYNC_END,
    OP_UNLINK, OP_RENAME, OP_LINK, OP_MKDIR, OP_RMDIR, OP_OPAQUE
};

struct header {
    char magic[4];
    uint16_t operation, path_length, other_length, reserved;
    uint32_t argument, process, thread;
    uint64_t inode;
    int64_t offset;
    uint64_t length;
};
_Static_assert(sizeof(struct header) == 48, "records.py unpacks 48 bytes");

struct target {
    char path[PATH_MAX];  /* absolute */
    const char *relative; /* inside path, below the watched directory; "." is that directory */
    uint64_t inode;
    int is_directory;
    int is_special; /* a socket or a pipe: it means nothing after a power cut */
};

static char root[PATH_MAX];
static size_t root_length; /* 0 until start() has run: every call passes through */
static char trace_path[PATH_MAX];
static long sync_microseconds = -1;
static pthread_mutex_t position_lock = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *what)
{
    char text[256];
    int length = snprintf(text, sizeof text, "powercut shim: %s: %s\n", what, strerror(errno));
    if (length > 0)
        syscall(SYS_write, 2, text, (size_t)length);
    abort();
}

static void record_data(enum operation operation, const struct target *target, const char *other,
                        uint32_t argument, int64_t offset, uint64_t length, const void *data)
{
    int saved = errno;
    const char *path = target ? target->relative : "";
    size_t path_length = strlen(path), other_length = other ? strlen(other) : 0;
    size_t data_length = data ? (size_t)length : 0;
    struct header header = {
        .magic = {'P', 'C', 'T', '1'},
        .operation = (uint16_t)operation,
        .path_length = (uint16_t)path_length,
        .other_length = (uint16_t)other_length,
        .argument = argument,
        .process = (uint32_t)getpid(),
        .thread = (uint32_t)syscall(SYS_gettid),
        .inode = target ? target->inode : 0,
        .offset = offset,
        .length = length,
    };
    struct iovec parts[4] = {
        {&header, sizeof header}, {(void *)path, path_length},
        {(void *)other, other_length}, {(void *)data, data_length},
    };
    long total = (long)(sizeof header + path_length + other_length + data_length);
    int flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC;
    long fd = syscall(SYS_openat, AT_FDCWD, trace_path, flags, 0666);
    if (fd < 0)
        die("cannot open the trace");
    if (syscall(SYS_writev, fd, parts, 4) != total)
        die("cannot append to the trace"); /* a gap would make every later image a lie */
    syscall(SYS_close, fd);
    errno = saved;
}

static void record(enum operation operation, const struct target *target)
{
    record_data(operation, target, NULL, 0, 0, 0, NULL);
}

static void record_opaque(const struct target *target, const char *call)
{
    record_data(OP_OPAQUE, target, call, 0, 0, 0, NULL);
}

/* The shared memory file of a WAL is rebuilt from the log after a crash: no persistent state. */
static int is_shared_memory(const char *path)
{
    size_t length = strlen(path);
    return length >= 4 && strcmp(path + length - 4, "-shm") == 0;
}

static int is_watched(struct target *target)
{
    if (root_length == 0 || strncmp(target->path, root, root_length) != 0)
        return 0;
    if (target->path[root_length] == '\0')
        target->relative = ".";
    else if (target->path[root_length] == '/')
        target->relative = target->path + root_length + 1;
    else
        return 0;
    return !is_shared_memory(target->path);
}

static int path_of_descriptor(int fd, char *path)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0)
        return 0;
    path[length] = '\0';
    return 1;
}

/* Whether the descriptor is a named regular file or a directory that is watched. */
static int locate(int fd, struct target *target)
{
    if (root_length == 0)
        return 0;
    int saved = errno, found = 0;
    struct stat status;
    if (fstat(fd, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))
        && status.st_nlink > 0 /* without a name it does not outlive its last descriptor */
        && path_of_descriptor(fd, target->path) && is_watched(target)) {
        target->inode = (uint64_t)status.st_ino;
        target->is_directory = S_ISDIR(status.st_mode);
        found = 1;
    }
    errno = saved;
    return found;
}

static int locate_file(int fd, struct target *target)
{
    return locate(fd, target) && !target->is_directory;
}

/* The same for a path, which need not exist: the parent is resolved, the last name not followed. */
static int locate_path(int directory_fd, const char *path, struct target *target)
{
    if (root_length == 0 || path == NULL)
        return 0;
    int saved = errno, found = 0;
    char parent[PATH_MAX];
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    if (length == 0 || length >= sizeof parent)
        return 0;
    memcpy(parent, path, length);
    parent[length] = '\0';
    char name[NAME_MAX + 1];
    char *slash = strrchr(parent, '/');
    const char *last = slash ? slash + 1 : parent;
    if (strlen(last) > NAME_MAX)
        return 0;
    strcpy(name, last);
    if (slash == NULL)
        strcpy(parent, ".");
    else
        slash[slash == parent ? 1 : 0] = '\0';
    long fd = syscall(SYS_openat, directory_fd, parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        size_t used;
        if (path_of_descriptor((int)fd, target->path)
            && (used = strlen(target->path)) + 1 + strlen(name) < PATH_MAX) {
            if (used > 1)
                target->path[used++] = '/';
            strcpy(target->path + used, name);
            struct stat status;
            int exists = fstatat((int)fd, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
            target->inode = exists ? (uint64_t)status.st_ino : 0;
            target->is_directory = exists && S_ISDIR(status.st_mode);
            target->is_special = exists && (S_ISSOCK(status.st_mode) || S_ISFIFO(status.st_mode));
            found = is_watched(target);
        }
        syscall(SYS_close, fd);
    }
    errno = saved;
    return found;
}

/* A forked child must not inherit the lock from a thread that it does not have. */
static void hold_position(void) { pthread_mutex_lock(&position_lock); }
static void release_position(void) { pthread_mutex_unlock(&position_lock); }

__attribute__((constructor)) static void start(void)
{
    const char *directory = getenv("POWERCUT_DIRECTORY");
    const char *trace = getenv("POWERCUT_TRACE");
    const char *delay = getenv("POWERCUT_SYNC_MICROSECONDS");
    if (directory == NULL || trace == NULL)
        return;
    if (trace[0] != '/' || strlen(trace) >= sizeof trace_path) {
        errno = EINVAL;
        die("POWERCUT_TRACE must be an absolute path");
    }
    strcpy(trace_path, trace);
    if (delay != NULL)
        sync_microseconds = strtol(delay, NULL, 10);
    if (realpath(directory, root) == NULL)
        die("POWERCUT_DIRECTORY cannot be resolved");
    pthread_atfork(hold_position, release_position, release_position);
    root_length = strlen(root);
    record(OP_START, NULL); /* lets the harness see that the preload was honoured */
}

/* ---- open --------------------------------------------------------------------------------- */

static int traced_open(int directory_fd, const char *path, int flags, mode_t mode)
{
    int fd = (int)syscall(SYS_openat, directory_fd, path, flags, mode);
    struct target target;
    if (fd >= 0 && (flags & (O_CREAT | O_TRUNC)) && locate_file(fd, &target)) {
        if (flags & O_CREAT)
            record(OP_CREATE, &target); /* the replay knows whether the file was there already */
        if (flags & O_TRUNC)
            record(OP_TRUNCATE, &target);
    }
    return fd;
}

static int takes_mode(int flags)
{
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;
}

#define OPEN(symbol)                                                                             \
    EXPORT int symbol(const char *path, int flags, ...)                                          \
    {                                                                                            \
        mode_t mode = 0;                                                                         \
        if (takes_mode(flags)) {                                                                 \
            va_list rest;                                                                        \
            va_start(rest, flags);                                                               \
            mode = va_arg(rest, mode_t);                                                         \
            va_end(rest);                                                                        \
        }                                                                                        \
        return traced_open(AT_FDCWD, path, flags, mode);                                         \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(symbol)                                                                           \
    EXPORT int symbol(int directory_fd, const char *path, int flags, ...)                        \
    {                                                                                            \
        mode_t mode = 0;                                                                         \
        if (takes_mode(flags)) {                                                                 \
            va_list rest;                                                                        \
            va_start(rest, flags);                                                               \
            mode = va_arg(rest, mode_t);                                                         \
            va_end(rest);                                                                        \
        }                                                                                        \
        return traced_open(directory_fd, path, flags, mode);                                     \
    }
OPENAT(openat)
OPENAT(openat64)

/* What a fortified build calls when no mode is given. */
EXPORT int __open_2(const char *path, int flags) { return traced_open(AT_FDCWD, path, flags, 0); }
EXPORT int __open64_2(const char *path, int flags) { return traced_open(AT_FDCWD, path, flags, 0); }
EXPORT int __openat_2(int directory_fd, const char *path, int flags)
{
    return traced_open(directory_fd, path, flags, 0);
}
EXPORT int __openat64_2(int directory_fd, const char *path, int flags)
{
    return traced_open(directory_fd, path, flags, 0);
}

EXPORT int creat(const char *path, mode_t mode)
{
    return traced_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
EXPORT int creat64(const char *path, mode_t mode)
{
    return traced_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* ---- write -------------------------------------------------------------------------------- */

static void record_parts(const struct target *target, const struct iovec *parts, int count,
                         off_t offset, ssize_t written)
{
    for (int i = 0; i < count && written > 0; i++) {
        size_t length = parts[i].iov_len < (size_t)written ? parts[i].iov_len : (size_t)written;
        if (length > 0)
            record_data(OP_WRITE, target, NULL, 0, offset, length, parts[i].iov_base);
        offset += (off_t)length;
        written -= (ssize_t)length;
    }
}

static ssize_t traced_pwrite(int fd, const void *data, size_t length, off_t offset)
{
    ssize_t written = syscall(SYS_pwrite64, fd, data, length, offset);
    struct target target;
    if (written > 0 && locate_file(fd, &target))
        record_data(OP_WRITE, &target, NULL, 0, offset, (uint64_t)written, data);
    return written;
}

static ssize_t traced_pwritev(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    struct target target;
    int watched = locate_file(fd, &target);
    if (!watched || offset != -1) {
        ssize_t written = syscall(SYS_pwritev2, fd, parts, (long)count, offset, 0L, flags);
        if (watched && written > 0)
            record_parts(&target, parts, count, offset, written);
        return written;
    }
    /* The offset is known only after the write (O_APPEND); the lock keeps other threads of this
       process from moving it in between. A descriptor shared with a fork is not protected. */
    hold_position();
    ssize_t written = syscall(SYS_pwritev2, fd, parts, (long)count, offset, 0L, flags);
    if (written > 0)
        record_parts(&target, parts, count, lseek(fd, 0, SEEK_CUR) - written, written);
    release_position();
    return written;
}

EXPORT ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return traced_pwrite(fd, data, length, offset);
}
EXPORT ssize_t pwrite64(int fd, const void *data, size_t length, off_t offset)
{
    return traced_pwrite(fd, data, length, offset);
}
EXPORT ssize_t write(int fd, const void *data, size_t length)
{
    struct target target;
    if (!locate_file(fd, &target))
        return syscall(SYS_write, fd, data, length);
    struct iovec part = {(void *)data, length};
    return traced_pwritev(fd, &part, 1, -1, 0);
}
EXPORT ssize_t writev(int fd, const struct iovec *parts, int count)
{
    struct target target;
    if (!locate_file(fd, &target))
        return syscall(SYS_writev, fd, parts, (long)count);
    return traced_pwritev(fd, parts, count, -1, 0);
}
EXPORT ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return traced_pwritev(fd, parts, count, offset, 0);
}
EXPORT ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t offset)
{
    return traced_pwritev(fd, parts, count, offset, 0);
}
EXPORT ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return traced_pwritev(fd, parts, count, offset, flags);
}
EXPORT ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return traced_pwritev(fd, parts, count, offset, flags);
}

/* ---- size --------------------------------------------------------------------------------- */

static int traced_ftruncate(int fd, off_t size)
{
    int result = (int)syscall(SYS_ftruncate, fd, size);
    struct target target;
    if (result == 0 && locate_file(fd, &target))
        record_data(OP_TRUNCATE, &target, NULL, 0, size, 0, NULL);
    return result;
}
EXPORT int ftruncate(int fd, off_t size) { return traced_ftruncate(fd, size); }
EXPORT int ftruncate64(int fd, off_t size) { return traced_ftruncate(fd, size); }

static int traced_truncate(const char *path, off_t size)
{
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int result = traced_ftruncate(fd, size), saved = errno;
    syscall(SYS_close, fd);
    errno = saved;
    return result;
}
EXPORT int truncate(const char *path, off_t size) { return traced_truncate(path, size); }
EXPORT int truncate64(const char *path, off_t size) { return traced_truncate(path, size); }

static int traced_fallocate(int fd, int mode, off_t offset, off_t length)
{
    int result = (int)syscall(SYS_fallocate, fd, mode, offset, length);
    struct target target;
    if (result == 0 && locate_file(fd, &target))
        record_data(OP_ALLOCATE, &target, NULL, (uint32_t)mode, offset, (uint64_t)length, NULL);
    return result;
}
EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return traced_fallocate(fd, mode, offset, length);
}
EXPORT int fallocate64(int fd, int mode, off_t offset, off_t length)
{
    return traced_fallocate(fd, mode, offset, length);
}
static int traced_posix_fallocate(int fd, off_t offset, off_t length)
{
    int saved = errno;
    int result = traced_fallocate(fd, 0, offset, length) == 0 ? 0 : errno;
    errno = saved;
    return result;
}
EXPORT int posix_fallocate(int fd, off_t offset, off_t length)
{
    return traced_posix_fallocate(fd, offset, length);
}
EXPORT int posix_fallocate64(int fd, off_t offset, off_t length)
{
    return traced_posix_fallocate(fd, offset, length);
}

/* ---- sync --------------------------------------------------------------------------------- */

/* sync(), syncfs(), msync(), sync_file_range() and O_SYNC are not recorded: what they made durable
   counts as lost, which is the safe side. */
static int traced_sync(int fd, long number)
{
    struct target target;
    if (!locate(fd, &target))
        return (int)syscall(number, fd);
    record(OP_SYNC_BEGIN, &target);
    int result = 0;
    if (sync_microseconds < 0) {
        result = (int)syscall(number, fd);
    } else if (sync_microseconds > 0) {
        struct timespec pause = {sync_microseconds / 1000000, sync_microseconds % 1000000 * 1000};
        nanosleep(&pause, NULL);
    }
    if (result == 0)
        record(OP_SYNC_END, &target);
    return result;
}
EXPORT int fsync(int fd) { return traced_sync(fd, SYS_fsync); }
EXPORT int fdatasync(int fd) { return traced_sync(fd, SYS_fdatasync); }

/* ---- names -------------------------------------------------------------------------------- */

static int traced_unlink(int directory_fd, const char *path, int flags)
{
    struct target target;
    int watched = locate_path(directory_fd, path, &target); /* before: then the inode is gone */
    int result = (int)syscall(SYS_unlinkat, directory_fd, path, flags);
    if (result == 0 && watched && !target.is_special)
        record(flags & AT_REMOVEDIR ? OP_RMDIR : OP_UNLINK, &target);
    return result;
}
EXPORT int unlink(const char *path) { return traced_unlink(AT_FDCWD, path, 0); }
EXPORT int rmdir(const char *path) { return traced_unlink(AT_FDCWD, path, AT_REMOVEDIR); }
EXPORT int unlinkat(int fd, const char *path, int flags) { return traced_unlink(fd, path, flags); }
EXPORT int remove(const char *path)
{
    int result = traced_unlink(AT_FDCWD, path, 0);
    return result != 0 && errno == EISDIR ? traced_unlink(AT_FDCWD, path, AT_REMOVEDIR) : result;
}

static int traced_rename(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    struct target source = {0}, destination;
    int leaves = locate_path(from_fd, from, &source);
    int enters = locate_path(to_fd, to, &destination);
    int result = (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
    if (result != 0 || (leaves && source.is_special))
        return result;
    if (enters && (!leaves || (flags & ~(unsigned)RENAME_NOREPLACE)))
        record_opaque(&destination, "rename");
    else if (enters)
        record_data(OP_RENAME, &source, destination.relative, 0, 0, 0, NULL);
    else if (leaves)
        record(OP_UNLINK, &source);
    return result;
}
EXPORT int rename(const char *from, const char *to)
{
    return traced_rename(AT_FDCWD, from, AT_FDCWD, to, 0);
}
EXPORT int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    return traced_rename(from_fd, from, to_fd, to, 0);
}
EXPORT int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags)
{
    return traced_rename(from_fd, from, to_fd, to, flags);
}

static int traced_link(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    int result = (int)syscall(SYS_linkat, from_fd, from, to_fd, to, flags);
    struct target source, destination;
    if (result == 0 && locate_path(to_fd, to, &destination) && !destination.is_special) {
        if (locate_path(from_fd, from, &source) && source.inode == destination.inode)
            record_data(OP_LINK, &source, destination.relative, 0, 0, 0, NULL);
        else
            record_opaque(&destination, "link");
    }
    return result;
}
EXPORT int link(const char *from, const char *to)
{
    return traced_link(AT_FDCWD, from, AT_FDCWD, to, 0);
}
EXPORT int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    return traced_link(from_fd, from, to_fd, to, flags);
}

static int traced_symlink(const char *content, int directory_fd, const char *path)
{
    int result = (int)syscall(SYS_symlinkat, content, directory_fd, path);
    struct target target;
    if (result == 0 && locate_path(directory_fd, path, &target))
        record_opaque(&target, "symlink");
    return result;
}
EXPORT int symlink(const char *content, const char *path)
{
    return traced_symlink(content, AT_FDCWD, path);
}
EXPORT int symlinkat(const char *content, int directory_fd, const char *path)
{
    return traced_symlink(content, directory_fd, path);
}

static int traced_mkdir(int directory_fd, const char *path, mode_t mode)
{
    int result = (int)syscall(SYS_mkdirat, directory_fd, path, mode);
    struct target target;
    if (result == 0 && locate_path(directory_fd, path, &target))
        record(OP_MKDIR, &target);
    return result;
}
EXPORT int mkdir(const char *path, mode_t mode) { return traced_mkdir(AT_FDCWD, path, mode); }
EXPORT int mkdirat(int fd, const char *path, mode_t mode) { return traced_mkdir(fd, path, mode); }

/* ---- what cannot be replayed -------------------------------------------------------------- */

static void *traced_mmap(void *address, size_t length, int protection, int flags, int fd,
                         off_t offset)
{
    void *result = (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
    struct target target;
    if (result != MAP_FAILED && fd >= 0 && (protection & PROT_WRITE)
        && ((flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE)
        && locate_file(fd, &target))
        record_opaque(&target, "mmap");
    return result;
}
EXPORT void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return traced_mmap(address, length, protection, flags, fd, offset);
}
EXPORT void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return traced_mmap(address, length, protection, flags, fd, offset);
}

static ssize_t opaque_copy(ssize_t copied, int fd, const char *call)
{
    struct target target;
    if (copied > 0 && locate_file(fd, &target))
        record_opaque(&target, call);
    return copied;
}
EXPORT ssize_t sendfile(int to, int from, off_t *offset, size_t length)
{
    return opaque_copy(syscall(SYS_sendfile, to, from, offset, length), to, "sendfile");
}
EXPORT ssize_t sendfile64(int to, int from, off_t *offset, size_t length)
{
    return opaque_copy(syscall(SYS_sendfile, to, from, offset, length), to, "sendfile");
}
EXPORT ssize_t copy_file_range(int from, off_t *from_offset, int to, off_t *to_offset,
                               size_t length, unsigned flags)
{
    long copied = syscall(SYS_copy_file_range, from, from_offset, to, to_offset, length, flags);
    return opaque_copy(copied, to, "copy_file_range");
}
EXPORT ssize_t splice(int from, off_t *from_offset, int to, off_t *to_offset, size_t length,
                      unsigned flags)
{
    long copied = syscall(SYS_splice, from, from_offset, to, to_offset, length, flags);
    return opaque_copy(copied, to, "splice");
}
