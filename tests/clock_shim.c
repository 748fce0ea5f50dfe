/* Preloaded into a server (LD_PRELOAD), this is its wall clock; tests/clocks.py moves it while the server runs.

   The monotonic clock, by which the server's own timers run, is left as it is: an administrator who sets the time of
   a machine does not move it either. */

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct setting {
    volatile int64_t ahead; /* nanoseconds before the time of the machine */
    volatile int64_t still; /* the time at which it stands still, if that is not 0 */
};

static struct setting none;
static struct setting *setting = &none; /* other libraries may ask before `begin` has run */

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_SHIM");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof(struct setting), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (map != MAP_FAILED)
        setting = map;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    /* No dlsym: it allocates, and the server's allocator may be what asks for the time. */
    int failed = syscall(SYS_clock_gettime, id, now);
    if (failed || (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE))
        return failed;
    int64_t still = setting->still;
    int64_t time = still ? still : now->tv_sec * INT64_C(1000000000) + now->tv_nsec + setting->ahead;
    now->tv_sec = time / 1000000000;
    now->tv_nsec = time % 1000000000;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}
