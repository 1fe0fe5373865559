/* fs.c: files and folders. Paths are bytes, used as they come. Symbolic links are followed, except by lr_tree_remove.
 *
 * Every message names the path. A signal does not end a call: only the training loop decides when to stop. */
#include "io/file.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 }; /* bytes of each read when a file is streamed */

int lr_file_stat(const char *path, lr_stat *out)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return lr_fail_errno("cannot look at %s", path);
    *out = (lr_stat){
        .kind = S_ISREG(st.st_mode)   ? LR_FILE_REGULAR
                : S_ISDIR(st.st_mode) ? LR_FILE_DIRECTORY
                                      : LR_FILE_OTHER,
        .mode = (int32_t)(st.st_mode & 07777),
        .size = st.st_size,
        .modified = (double)st.st_mtim.tv_sec + 1e-9 * (double)st.st_mtim.tv_nsec,
    };
    return LR_OK;
}

int lr_file_refuse_pointer(const char *path, const void *head, size_t size)
{
    static const char BEGIN[] = "version https://git-lfs.github.com/";
    if (size < sizeof BEGIN - 1 || memcmp(head, BEGIN, sizeof BEGIN - 1) != 0)
        return LR_OK;
    return lr_fail(LR_EFORMAT, "%s is a git-lfs pointer, not the file itself; fetch it with: git lfs pull", path);
}

/* ---- folders -------------------------------------------------------------------------------------------------------- */
static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The names as read, each NUL-terminated, one after the other. */
static int read_names(DIR *dir, const char *path, char **names, size_t *used, size_t *count)
{
    size_t capacity = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL)
            return errno == 0 ? LR_OK : lr_fail_errno("cannot list %s", path);
        if (is_dots(entry->d_name))
            continue;
        const size_t size = strlen(entry->d_name) + 1;
        void *grown = *names;
        const int status = lr_reserve(&grown, &capacity, *used + size, 1);
        *names = grown;
        if (status != LR_OK)
            return status;
        memcpy(*names + *used, entry->d_name, size);
        *used += size;
        ++*count;
    }
}

int lr_dir_list(const char *path, char **names, int64_t *count)
{
    DIR *dir = opendir(path);
    if (dir == NULL)
        return lr_fail_errno("cannot list %s", path);
    char *unsorted = NULL, *block = NULL;
    const char **index = NULL;
    size_t used = 0, n = 0;
    int status = read_names(dir, path, &unsorted, &used, &n);
    closedir(dir);
    if (status != LR_OK)
        goto done;
    status = LR_ENOMEM;
    index = lr_alloc((n + 1) * sizeof *index);
    block = lr_alloc(used + 1);
    if (index == NULL || block == NULL)
        goto done;
    const char *name = unsorted;
    for (size_t i = 0; i < n; i++, name += strlen(name) + 1)
        index[i] = name;
    qsort(index, n, sizeof *index, compare_names);
    char *end = block;
    for (size_t i = 0; i < n; i++) {
        const size_t size = strlen(index[i]) + 1;
        memcpy(end, index[i], size);
        end += size;
    }
    *end = 0;
    *names = block;
    *count = (int64_t)n;
    block = NULL;
    status = LR_OK;
done:
    lr_free(block);
    lr_free(index);
    lr_free(unsorted);
    return status;
}

static int make_one(const char *path, const char *whole)
{
    struct stat st;
    if (mkdir(path, 0777) == 0) { /* a file in it can be durable only if the folder is */
        char *parent = lr_directory_of(path);
        const int status = parent != NULL ? lr_directory_sync(parent, path) : LR_ENOMEM;
        lr_free(parent);
        return status;
    }
    if (errno == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return LR_OK;
    if (errno == EEXIST)
        return lr_fail(LR_EINVAL, "cannot make the folder %s: %s is a file", whole, path);
    return lr_fail_errno("cannot make the folder %s: %s", whole, path);
}

int lr_dir_make(const char *path)
{
    if (*path == 0)
        return lr_fail(LR_EINVAL, "cannot make a folder without a name");
    char *copy = lr_strdup(path);
    if (copy == NULL)
        return LR_ENOMEM;
    int status = LR_OK;
    for (char *p = copy + 1; *p != 0 && status == LR_OK; p++)
        if (*p == '/' && p[-1] != '/') {
            *p = 0;
            status = make_one(copy, path);
            *p = '/';
        }
    if (status == LR_OK)
        status = make_one(copy, path);
    lr_free(copy);
    return status;
}

/* Remove the entry `name` of the folder `parent`. It is no error if another process removes it at the same time. */
static int remove_at(int parent, const char *name, const char *whole)
{
    struct stat st;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return errno == ENOENT ? LR_OK : lr_fail_errno("cannot remove %s: looking at %s", whole, name);
    if (!S_ISDIR(st.st_mode))
        return unlinkat(parent, name, 0) == 0 || errno == ENOENT
                   ? LR_OK
                   : lr_fail_errno("cannot remove %s: the file %s", whole, name);
    const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return lr_fail_errno("cannot remove %s: opening %s", whole, name);
    DIR *dir = fdopendir(fd);
    if (dir == NULL) {
        const int status = lr_fail_errno("cannot remove %s: listing %s", whole, name);
        close(fd);
        return status;
    }
    int status = LR_OK;
    while (status == LR_OK) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            if (errno != 0)
                status = lr_fail_errno("cannot remove %s: listing %s", whole, name);
            break;
        }
        if (!is_dots(entry->d_name))
            status = remove_at(fd, entry->d_name, whole);
    }
    closedir(dir);
    if (status == LR_OK && unlinkat(parent, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        status = lr_fail_errno("cannot remove %s: the folder %s", whole, name);
    return status;
}

int lr_tree_remove(const char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') /* "link/" would name the folder that the link points to */
        n--;
    char *trimmed = lr_strndup(path, n);
    if (trimmed == NULL)
        return LR_ENOMEM;
    struct stat st;
    const char *last = strrchr(trimmed, '/');
    int status;
    if (n == 0 || strcmp(trimmed, "/") == 0 || is_dots(last != NULL ? last + 1 : trimmed))
        status = lr_fail(LR_EINVAL, "'%s' is not removed: name a file or a folder", path);
    else if (lstat(trimmed, &st) != 0)
        status = lr_fail_errno("cannot remove %s", path);
    else
        status = remove_at(AT_FDCWD, trimmed, path);
    lr_free(trimmed);
    return status;
}

/* ---- reading -------------------------------------------------------------------------------------------------------- */
int lr_file_open(const char *path, int *fd, int64_t *size)
{
    const int opened =
        open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* O_NONBLOCK: opening a pipe without a writer must not hang */
    if (opened < 0)
        return lr_fail_errno("cannot open %s", path);
    struct stat st;
    int status = LR_OK;
    if (fstat(opened, &st) != 0)
        status = lr_fail_errno("cannot look at %s", path);
    else if (!S_ISREG(st.st_mode))
        status = lr_fail(LR_EINVAL, "cannot read %s: it is %s", path,
                         S_ISDIR(st.st_mode) ? "a directory" : "no regular file");
    if (status != LR_OK) {
        close(opened);
        return status;
    }
    *fd = opened;
    *size = st.st_size;
    return LR_OK;
}

int lr_file_read_at(int fd, int64_t offset, void *data, size_t size)
{
    char *p = data;
    while (size > 0) {
        const ssize_t n = pread(fd, p, size < (size_t)1 << 30 ? size : (size_t)1 << 30, offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            if (n == 0)
                errno = 0;
            return 0;
        }
        p += n;
        offset += n;
        size -= (size_t)n;
    }
    return 1;
}

int lr_file_read(const char *path, char **data, int64_t *size)
{
    int fd;
    int64_t expected;
    int status = lr_file_open(path, &fd, &expected);
    if (status != LR_OK)
        return status;
    /* The size is a hint: it is 0 for files in /proc, and a log may grow while it is read. */
    void *buffer = NULL;
    size_t capacity = 0, used = 0;
    for (;;) {
        status = lr_reserve(&buffer, &capacity, used == 0 ? (size_t)expected + 2 : used + 2, 1);
        if (status != LR_OK)
            break;
        const ssize_t n = lr_fd_read(fd, (char *)buffer + used, capacity - used - 1);
        if (n < 0)
            status = lr_fail_errno("cannot read %s", path);
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    close(fd);
    if (status != LR_OK) {
        lr_free(buffer);
        return status;
    }
    ((char *)buffer)[used] = 0;
    *data = buffer;
    *size = (int64_t)used;
    return LR_OK;
}

/* Give the bytes of an open file to `take`, block by block, until the end. */
static int stream(int fd, const char *path, int (*take)(void *context, const void *data, size_t size), void *context)
{
    char *block = lr_alloc(BLOCK);
    if (block == NULL)
        return LR_ENOMEM;
    int status = LR_OK;
    while (status == LR_OK) {
        const ssize_t n = lr_fd_read(fd, block, BLOCK);
        if (n < 0)
            status = lr_fail_errno("cannot read %s", path);
        if (n <= 0)
            break;
        status = take(context, block, (size_t)n);
    }
    lr_free(block);
    return status;
}

static int take_crc(void *context, const void *data, size_t size)
{
    uint32_t *crc = context;
    *crc = lr_crc32c(*crc, data, size);
    return LR_OK;
}

int lr_file_crc32c(const char *path, uint32_t *out)
{
    int fd;
    int64_t size;
    uint32_t crc = 0;
    int status = lr_file_open(path, &fd, &size);
    if (status != LR_OK)
        return status;
    status = stream(fd, path, take_crc, &crc);
    close(fd);
    if (status == LR_OK)
        *out = crc;
    return status;
}

/* ---- writing -------------------------------------------------------------------------------------------------------- */
int lr_file_write(const char *path, const char *data, int64_t size)
{
    if (size < 0)
        return lr_fail(LR_EINVAL, "cannot write %lld bytes to %s", (long long)size, path);
    lr_atomic file;
    int status = lr_atomic_open(&file, path);
    if (status != LR_OK)
        return status;
    status = lr_atomic_write(&file, data, (size_t)size);
    if (status == LR_OK)
        return lr_atomic_commit(&file);
    lr_atomic_abandon(&file);
    return status;
}

int lr_file_private(const char *path)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
    if (fd < 0)
        return lr_fail_errno("cannot open %s", path);
    const int status = fchmod(fd, 0600) == 0 ? LR_OK : lr_fail_errno("cannot close %s to others", path);
    (void)close(fd);
    return status;
}

int lr_file_append(const char *path, const char *data, int64_t size)
{
    if (size < 0)
        return lr_fail(LR_EINVAL, "cannot append %lld bytes to %s", (long long)size, path);
    const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0)
        return lr_fail_errno("cannot append to %s", path);
    const ssize_t n = lr_fd_write(fd, data, (size_t)size);
    int status = LR_OK;
    if (n < 0)
        status = lr_fail_errno("cannot append to %s", path);
    else if (n != size) { /* a full disk: take back the part that fitted */
        const off_t end = lseek(fd, 0, SEEK_CUR);
        const bool undone = end >= n && ftruncate(fd, end - n) == 0;
        status = lr_fail(LR_EIO, "cannot append to %s: only %lld of %lld bytes fitted%s", path, (long long)n,
                         (long long)size, undone ? "" : ", and they are left there");
    }
    close(fd);
    return status;
}

static int take_write(void *context, const void *data, size_t size)
{
    return lr_atomic_write(context, data, size);
}

int lr_file_copy(const char *from, const char *to)
{
    int fd;
    int64_t size;
    lr_atomic file;
    int status = lr_file_open(from, &fd, &size);
    if (status != LR_OK)
        return status;
    status = lr_atomic_open(&file, to);
    if (status == LR_OK) {
        status = stream(fd, from, take_write, &file);
        if (status == LR_OK)
            status = lr_atomic_commit(&file);
        else
            lr_atomic_abandon(&file);
    }
    close(fd);
    return status;
}

/* ---- places --------------------------------------------------------------------------------------------------------- */
int lr_path_real(const char *path, char **out)
{
    char *real = realpath(path, NULL);
    if (real == NULL)
        return lr_fail_errno("cannot resolve %s", path);
    char *copy = lr_strdup(real);
    free(real); /* from realpath, so not lr_free */
    if (copy == NULL)
        return LR_ENOMEM;
    *out = copy;
    return LR_OK;
}

int64_t lr_disk_free(const char *path)
{
    struct statvfs st;
    if (statvfs(path, &st) != 0)
        return lr_fail_errno("cannot ask for the free space of %s", path);
    int64_t bytes;
    return __builtin_mul_overflow(st.f_bavail, st.f_frsize, &bytes) ? INT64_MAX : bytes;
}
