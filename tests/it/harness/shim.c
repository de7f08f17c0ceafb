/* Preloaded into a process of a test: a clock that a test moves, a disk that a test fills, and a journal that a test reads.
 *
 * Two files of eight bytes, mapped: OUTBOXD_TEST_CLOCK says by how many seconds the wall clock is wrong (the monotonic
 * clock is left alone, as it is when an administrator sets the time), and OUTBOXD_TEST_DISK, when it is not 0, that no
 * file can grow: what is there can be written again, as on a disk that is full. OUTBOXD_TEST_JOURNAL is a socket that gets what
 * is meant for systemd's journal. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t nothing = 0;
static volatile int64_t *clock_wrong = &nothing;
static volatile int64_t *disk_full = &nothing;

static volatile int64_t *mapped(const char *variable)
{
    const char *path = getenv(variable);
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return &nothing;
    void *map = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    return map == MAP_FAILED ? &nothing : map;
}

__attribute__((constructor)) static void begin(void)
{
    clock_wrong = mapped("OUTBOXD_TEST_CLOCK");
    disk_full = mapped("OUTBOXD_TEST_DISK");
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = (int) syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *clock_wrong;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void) zone;
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *seconds)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (seconds)
        *seconds = now.tv_sec;
    return now.tv_sec;
}

static int has_no_room(int file, off_t end)
{
    struct stat found;
    return *disk_full && fstat(file, &found) == 0 && S_ISREG(found.st_mode) && end > found.st_size;
}

ssize_t pwrite(int file, const void *bytes, size_t size, off_t at)
{
    if (has_no_room(file, at + (off_t) size)) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwrite64, file, bytes, size, at);
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off_t at)
{
    return pwrite(file, bytes, size, at);
}

ssize_t pwritev(int file, const struct iovec *parts, int count, off_t at)
{
    off_t end = at;
    for (int i = 0; i < count; i++)
        end += (off_t) parts[i].iov_len;
    if (has_no_room(file, end)) {
        errno = ENOSPC;
        return -1;
    }
    return syscall(SYS_pwritev, file, parts, (long) count, (long) at, 0L);
}

ssize_t pwritev64(int file, const struct iovec *parts, int count, off_t at)
{
    return pwritev(file, parts, count, at);
}

int posix_fallocate(int file, off_t at, off_t size)
{
    if (has_no_room(file, at + size))
        return ENOSPC;
    return syscall(SYS_fallocate, file, 0, at, size) == 0 ? 0 : errno;
}

int posix_fallocate64(int file, off_t at, off_t size)
{
    return posix_fallocate(file, at, size);
}

ssize_t sendto(int socket, const void *bytes, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
    const char *journal = getenv("OUTBOXD_TEST_JOURNAL");
    struct sockaddr_un other = { .sun_family = AF_UNIX };
    if (journal && to && to->sa_family == AF_UNIX && strlen(journal) < sizeof other.sun_path
        && strcmp(((const struct sockaddr_un *) to)->sun_path, "/run/systemd/journal/socket") == 0) {
        strcpy(other.sun_path, journal);
        to = (const struct sockaddr *) &other;
        length = sizeof other;
    }
    return syscall(SYS_sendto, socket, bytes, size, (long) flags, to, (long) length);
}
