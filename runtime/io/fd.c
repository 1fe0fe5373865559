/* fd.c: reads and writes of a file descriptor that a signal does not end. */
#include "io/file.h"
#include <errno.h>
#include <unistd.h>

ssize_t lr_fd_read(int fd, void *data, size_t size)
{
    ssize_t n;
    do
        n = read(fd, data, size);
    while (n < 0 && errno == EINTR);
    return n;
}

ssize_t lr_fd_write(int fd, const void *data, size_t size)
{
    ssize_t n;
    do
        n = write(fd, data, size);
    while (n < 0 && errno == EINTR);
    return n;
}
