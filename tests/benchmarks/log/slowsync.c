/* A disk that takes SLOWSYNC_US microseconds longer to say that it is done: preloaded into the Postgres of the
   benchmarks, whose fsync stays real. Linux and the BSDs (LD_PRELOAD). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static struct timespec pause_for;

__attribute__((constructor)) static void find(void)
{
    const char *given = getenv("SLOWSYNC_US");
    long us = given ? atol(given) : 0;
    real_fsync = (int (*)(int)) dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (int (*)(int)) dlsym(RTLD_NEXT, "fdatasync");
    pause_for.tv_sec = us / 1000000;
    pause_for.tv_nsec = us % 1000000 * 1000;
}

int fsync(int descriptor)
{
    int answer = real_fsync(descriptor);
    nanosleep(&pause_for, NULL);
    return answer;
}

int fdatasync(int descriptor)
{
    int answer = real_fdatasync(descriptor);
    nanosleep(&pause_for, NULL);
    return answer;
}
