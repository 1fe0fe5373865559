/* lock.c: a lock file, which one process at a time holds and which says who that is.
 *
 * The kernel's lock on the open file (flock) tells whether the holder is alive: it ends with the process, however that ends. It
 * works across the containers of one machine and, on NFS, across machines. The text in the file tells people and other hosts who
 * holds it. If a file system has no flock (Lustre without its option), the process that creates the file (O_EXCL) holds it; what
 * the text of an existing file means then is for the caller to decide.
 *
 * A holder removes the file while it still has the kernel's lock. So another process that waited for the lock may have opened a
 * file that has no name any more: it starts again. */
#include "core/core.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

struct lr_lock {
    int fd;
    char *path;
};

/* Is the open file still the one with this name? */
static bool still_named(int fd, const char *path)
{
    struct stat opened, named;
    return fstat(fd, &opened) == 0 && lstat(path, &named) == 0 && opened.st_dev == named.st_dev &&
           opened.st_ino == named.st_ino;
}

static int take_kernel_lock(int fd)
{
    int result;
    do
        result = flock(fd, LOCK_EX | LOCK_NB);
    while (result != 0 && errno == EINTR);
    return result == 0 ? 0 : errno;
}

/* The opened file will be written, so it must be a lock file and nothing else: a link that somebody put under the name could
 * lead to any file. */
static int require_lock_file(int fd, const char *path)
{
    struct stat s;
    if (fstat(fd, &s) != 0)
        return lr_fail_errno("cannot lock %s", path);
    if (!S_ISREG(s.st_mode) || s.st_nlink > 1)
        return lr_fail(LR_EINVAL, "cannot lock %s: it is %s, and no lock of lorarun's; remove it", path,
                       S_ISREG(s.st_mode) ? "another name of some file" : "no plain file");
    return LR_OK;
}

/* One try. *state is as in lr.h, or -1: the file was removed meanwhile. *fd stays open unless another process holds the file. */
static int try_once(const char *path, int *fd, int *state)
{
    bool made = true;
    *fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (*fd < 0 && errno == EEXIST) {
        made = false;
        *fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (*fd < 0 && errno == ENOENT) {
            *state = -1;
            return LR_OK;
        }
        if (*fd < 0 && errno == ELOOP)
            return lr_fail(LR_EINVAL, "cannot lock %s: it is a link, and no lock of lorarun's; remove it", path);
    }
    if (*fd < 0)
        return lr_fail_errno("cannot lock %s", path);
    const int status = require_lock_file(*fd, path);
    if (status != LR_OK) {
        close(*fd);
        *fd = -1;
        return status;
    }
    const int error = take_kernel_lock(*fd);
    if (error == EWOULDBLOCK)
        *state = LR_LOCK_HELD;
    else if (error != 0)
        *state = made ? LR_LOCK_MADE : LR_LOCK_UNKNOWN; /* no flock here */
    else if (!still_named(*fd, path))
        *state = -1;
    else
        *state = made ? LR_LOCK_MADE : LR_LOCK_LEFT;
    if (*state == LR_LOCK_HELD || *state == -1) {
        close(*fd);
        *fd = -1;
    }
    return LR_OK;
}

int lr_lock_take(lr_lock **out, const char *path, int *state)
{
    lr_lock *lock = lr_alloc(sizeof *lock);
    char *name = lr_strdup(path);
    int status = lock != NULL && name != NULL ? LR_OK : LR_ENOMEM, fd = -1, found = -1;
    while (status == LR_OK && found == -1)
        status = try_once(path, &fd, &found);
    if (status != LR_OK || fd < 0) {
        lr_free(name);
        lr_free(lock);
        lock = NULL;
    } else {
        *lock = (lr_lock){.fd = fd, .path = name};
    }
    if (status == LR_OK) {
        *out = lock;
        *state = found;
    }
    return status;
}

int lr_lock_write(lr_lock *lock, const char *text, int64_t size)
{
    if (ftruncate(lock->fd, 0) != 0 || pwrite(lock->fd, text, (size_t)size, 0) != size || fsync(lock->fd) != 0)
        return lr_fail_errno("cannot write %s", lock->path);
    return LR_OK;
}

void lr_lock_free(lr_lock *lock, int remove)
{
    if (lock == NULL)
        return;
    if (remove && still_named(lock->fd, lock->path))
        (void)unlink(lock->path);
    close(lock->fd);
    lr_free(lock->path);
    lr_free(lock);
}
