/* Preloaded by test_durability.py: while the file $SHIM_HOLD exists, waiting for the disk takes for ever; while the
 * file $SHIM_FAIL exists, it fails as on a dying disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int there(const char *variable) {
    const char *path = getenv(variable);
    return path != NULL && access(path, F_OK) == 0;
}

static int synchronize(const char *name, int descriptor) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    while (there("SHIM_HOLD")) usleep(1000);
    if (there("SHIM_FAIL")) {
        errno = EIO;
        return -1;
    }
    return real(descriptor);
}

int fsync(int descriptor) { return synchronize("fsync", descriptor); }
int fdatasync(int descriptor) { return synchronize("fdatasync", descriptor); }
