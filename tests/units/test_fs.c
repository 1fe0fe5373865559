/* test_fs.c: files and folders, the atomic writer under a full disk, CRC-32C. */
#define _GNU_SOURCE /* O_TMPFILE */
#include "folder.h"
#include "io/file.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Replaces libc's function: notes the folders that are made durable, in order. */
static char synced[16][256];
static int synced_count;
int fsync(int fd)
{
    char link[64];
    (void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = synced_count < 16 ? readlink(link, synced[synced_count], sizeof synced[0] - 1) : -1;
    if (n > 0)
        synced[synced_count++][n] = 0;
    return (int)syscall(SYS_fsync, fd);
}

static void write_text(const char *path, const char *text)
{
    CHECK_INT(lr_file_write(path, text, (int64_t)strlen(text)), LR_OK);
}

static void check_text(const char *path, const char *expected)
{
    char *data;
    int64_t size;
    CHECK_INT(lr_file_read(path, &data, &size), LR_OK);
    const bool equal = size == (int64_t)strlen(expected) && memcmp(data, expected, (size_t)size + 1) == 0;
    lr_free(data);
    CHECK(equal);
}

/* A power cut after a checkpoint was written must not take the folder that holds it. */
TEST(new_folders_are_made_durable)
{
    char parent[1024], deep[1200];
    (void)snprintf(parent, sizeof parent, "%s", in_folder("durable"));
    CHECK_INT(lr_dir_make(parent), LR_OK);
    (void)snprintf(deep, sizeof deep, "%s/checkpoints/step-1", parent);
    synced_count = 0;
    CHECK_INT(lr_dir_make(deep), LR_OK);
    CHECK_INT(synced_count, 2);
    CHECK_HAS(synced[0], "/durable");
    CHECK(strstr(synced[0], "/checkpoints") == NULL);
    CHECK_HAS(synced[1], "/durable/checkpoints");
    CHECK_INT(lr_dir_make(deep), LR_OK); /* it exists: nothing to do */
    CHECK_INT(synced_count, 2);
    char to[1200];
    (void)snprintf(to, sizeof to, "%s/moved", parent);
    synced_count = 0;
    CHECK_INT(lr_file_rename(deep, to), LR_OK);
    CHECK_INT(synced_count, 2); /* the folder it moved to, and the one it moved from */
    CHECK_INT(lr_tree_remove(parent), LR_OK);
}

TEST(a_folder_may_be_writable_but_not_readable)
{
    const char *path = in_folder("drop");
    CHECK_INT(lr_dir_make(path), LR_OK);
    CHECK(chmod(path, 0333) == 0);
    const pid_t child = fork();
    if (child == 0) {
        const bool ready = chdir(path) == 0 && (geteuid() != 0 || seteuid(65534) == 0);
        const int made = lr_dir_make("new"), written = lr_file_write("file", "text", 4);
        if (!ready || made != LR_OK || written != LR_OK)
            printf("    %s\n", lr_last_error());
        (void)fflush(stdout);
        _exit(ready && made == LR_OK && written == LR_OK ? 0 : 1);
    }
    int how = -1;
    CHECK(child > 0 && waitpid(child, &how, 0) == child);
    CHECK(chmod(path, 0755) == 0);
    CHECK_INT(how, 0);
    check_text(in_folder("drop/file"), "text");
    CHECK_INT(lr_tree_remove(path), LR_OK);
}

TEST(only_its_owner_can_read_a_private_file)
{
    struct stat st;
    const char *path = in_folder("private");
    CHECK_INT(lr_file_private(path), LR_OK);
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    write_text(path, "kept");
    CHECK_INT(chmod(path, 0644), 0);
    CHECK_INT(lr_file_private(path), LR_OK);
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    check_text(path, "kept");
    CHECK_INT(lr_tree_remove(path), LR_OK);
}

TEST(write_and_read_back)
{
    const char *path = in_folder("text");
    write_text(path, "one");
    check_text(path, "one");
    write_text(path, "");
    check_text(path, "");
    CHECK_INT(lr_file_append(path, "line 1\n", 7), LR_OK);
    CHECK_INT(lr_file_append(path, "line 2\n", 7), LR_OK);
    check_text(path, "line 1\nline 2\n");
    lr_stat st;
    CHECK_INT(lr_file_stat(path, &st), LR_OK);
    CHECK_INT(st.kind, LR_FILE_REGULAR);
    CHECK_INT(st.size, 14);
    CHECK(st.modified > 1.6e9);
    CHECK_INT(names_in_folder(), 1);
    CHECK_INT(lr_tree_remove(path), LR_OK);
}

TEST(large_file_with_any_bytes)
{
    const size_t size = (3 << 20) + 17;
    char *data = lr_alloc(size), *back;
    CHECK(data != NULL);
    for (size_t i = 0; i < size; i++)
        data[i] = (char)(i * 2654435761u >> 11);
    const char *path = in_folder("large"), *copy = in_folder("copy");
    int64_t n;
    CHECK_INT(lr_file_write(path, data, (int64_t)size), LR_OK);
    CHECK_INT(lr_file_copy(path, copy), LR_OK);
    CHECK_INT(lr_file_read(copy, &back, &n), LR_OK);
    CHECK_INT(n, size);
    CHECK_INT(memcmp(data, back, size), 0);
    uint32_t crc;
    CHECK_INT(lr_file_crc32c(copy, &crc), LR_OK);
    CHECK_INT(crc, lr_crc32c_portable(0, data, size));
    lr_free(back);
    lr_free(data);
    lr_tree_remove(path);
    lr_tree_remove(copy);
}

TEST(a_file_that_reports_no_size)
{
    char *data;
    int64_t size;
    CHECK_INT(lr_file_read("/proc/self/status", &data, &size), LR_OK);
    const bool named = size > 5 && strncmp(data, "Name:", 5) == 0;
    lr_free(data);
    CHECK(named);
}

/* CRC-32C of RFC 3720, appendix B.4, and of "123456789". */
TEST(crc32c_known_values)
{
    unsigned char data[32];
    CHECK_INT(lr_crc32c(0, "123456789", 9), 0xe3069283);
    CHECK_INT(lr_crc32c_portable(0, "123456789", 9), 0xe3069283);
    memset(data, 0, sizeof data);
    CHECK_INT(lr_crc32c(0, data, 32), 0x8a9136aa);
    memset(data, 0xff, sizeof data);
    CHECK_INT(lr_crc32c(0, data, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++)
        data[i] = (unsigned char)i;
    CHECK_INT(lr_crc32c(0, data, 32), 0x46dd794e);
    CHECK_INT(lr_crc32c(0, data, 0), 0);
    for (size_t cut = 0; cut <= 32; cut++) { /* in two parts, at every length and alignment */
        CHECK_INT(lr_crc32c(lr_crc32c(0, data, cut), data + cut, 32 - cut), 0x46dd794e);
        CHECK_INT(lr_crc32c_portable(lr_crc32c_portable(0, data, cut), data + cut, 32 - cut), 0x46dd794e);
    }
}

TEST(errors_name_the_path)
{
    char *data;
    int64_t size;
    uint32_t crc;
    lr_stat st;
    const char *missing = in_folder("missing");
    CHECK_INT(lr_file_stat(missing, &st), LR_ENOTFOUND);
    CHECK_INT(lr_file_read(missing, &data, &size), LR_ENOTFOUND);
    CHECK_HAS(lr_last_error(), missing);
    CHECK_INT(lr_file_crc32c(missing, &crc), LR_ENOTFOUND);
    CHECK_INT(lr_dir_list(missing, &data, &size), LR_ENOTFOUND);
    CHECK_INT(lr_path_real(missing, &data), LR_ENOTFOUND);
    CHECK_INT(lr_tree_remove(missing), LR_ENOTFOUND);
    CHECK_INT(lr_file_copy(missing, in_folder("x")), LR_ENOTFOUND);
    CHECK_INT(lr_file_rename(missing, in_folder("x")), LR_ENOTFOUND);
    CHECK_INT(lr_disk_free(missing), LR_ENOTFOUND);
    CHECK_INT(lr_file_write(in_folder("no/such/folder"), "x", 1), LR_ENOTFOUND);
    CHECK_HAS(lr_last_error(), "no/such/folder");
    CHECK_INT(lr_file_append(in_folder("no/file"), "x", 1), LR_ENOTFOUND);
    CHECK_INT(lr_file_read(lr_test_folder, &data, &size), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "is a directory");
    CHECK_INT(lr_file_write(lr_test_folder, "x", 1), LR_EINVAL);
    CHECK_INT(lr_file_read("/dev/null", &data, &size), LR_EINVAL);
    CHECK_INT(lr_file_write(in_folder("x"), "x", -1), LR_EINVAL);
    CHECK_INT(names_in_folder(), 0);
}

TEST(a_pipe_does_not_hang)
{
    const char *path = in_folder("pipe");
    char *data;
    int64_t size;
    CHECK_INT(mkfifo(path, 0600), 0);
    CHECK_INT(lr_file_read(path, &data, &size), LR_EINVAL);
    lr_stat st;
    CHECK_INT(lr_file_stat(path, &st), LR_OK);
    CHECK_INT(st.kind, LR_FILE_OTHER);
    CHECK_INT(lr_tree_remove(path), LR_OK);
}

/* The disk is full after 100 bytes: the old file stays, the temporary one goes. */
TEST(a_full_disk_leaves_the_old_file)
{
    static char block[4096];
    const char *path = in_folder("precious");
    write_text(path, "old");
    struct rlimit before, limit;
    CHECK_INT(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 100;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    CHECK_INT(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const int written = lr_file_write(path, block, sizeof block);
    const int appended = lr_file_append(path, block, sizeof block);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, handler);
    CHECK_INT(written, LR_EIO);
    CHECK_INT(appended, LR_EIO);
    CHECK_HAS(lr_last_error(), "only 97 of 4096 bytes");
    char *data;
    int64_t size;
    CHECK_INT(lr_file_read(path, &data, &size), LR_OK);
    const bool old = memcmp(data, "old", 3) == 0;
    lr_free(data);
    CHECK(old);
    CHECK_INT(names_in_folder(), 1);
    CHECK_INT(lr_tree_remove(path), LR_OK);
}

TEST(a_writer_that_is_killed_leaves_the_old_file_alone)
{
    const char *path = in_folder("precious");
    write_text(path, "old");
    const pid_t writer = fork();
    if (writer == 0) {
        lr_atomic a;
        if (lr_atomic_open(&a, path) == LR_OK && lr_atomic_write(&a, "half", 4) == LR_OK)
            (void)kill(getpid(), SIGKILL);
        _exit(1);
    }
    int status;
    CHECK_INT(waitpid(writer, &status, 0), writer);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    char *data;
    int64_t size;
    CHECK_INT(lr_file_read(path, &data, &size), LR_OK);
    const bool old = size == 3 && memcmp(data, "old", 3) == 0;
    lr_free(data);
    CHECK(old);
    const int nameless = open(lr_test_folder, O_WRONLY | O_TMPFILE | O_CLOEXEC, 0600);
    CHECK_INT(names_in_folder(), nameless >= 0 ? 1 : 2); /* 2: the file system has no nameless files */
    (void)close(nameless);
    CHECK_INT(lr_tree_remove(lr_test_folder), LR_OK);
    CHECK_INT(lr_dir_make(lr_test_folder), LR_OK);
}

TEST(permissions_stay)
{
    const char *path = in_folder("private");
    struct stat st;
    write_text(path, "old");
    CHECK_INT(chmod(path, 0600), 0);
    write_text(path, "new");
    CHECK_INT(stat(path, &st), 0);
    CHECK_INT(st.st_mode & 0777, 0600);
    CHECK_INT(lr_tree_remove(path), LR_OK);
}

TEST(folders)
{
    char *names;
    int64_t count;
    CHECK_INT(lr_dir_make(in_folder("a/b//c/")), LR_OK);
    CHECK_INT(lr_dir_make(in_folder("a/b/c")), LR_OK);
    write_text(in_folder("a/z"), "1");
    write_text(in_folder("a/B"), "2");
    write_text(in_folder("a/\xc3\xa9"), "3");
    CHECK_INT(lr_dir_list(in_folder("a"), &names, &count), LR_OK);
    const bool sorted = count == 4 && memcmp(names, "B\0b\0z\0\xc3\xa9", 9) == 0;
    lr_free(names);
    CHECK(sorted);
    CHECK_INT(lr_dir_list(in_folder("a/b/c"), &names, &count), LR_OK);
    lr_free(names);
    CHECK_INT(count, 0);
    CHECK_INT(lr_dir_make(in_folder("a/z")), LR_EINVAL);
    CHECK_INT(lr_dir_make(in_folder("a/z/under")), LR_EINVAL);
    CHECK_HAS(lr_last_error(), "a/z is a file");
    CHECK_INT(lr_dir_make(""), LR_EINVAL);
    CHECK_INT(lr_file_rename(in_folder("a/z"), in_folder("a/b/y")), LR_OK);
    check_text(in_folder("a/b/y"), "1");
    char *real;
    CHECK_INT(lr_path_real(in_folder("a/./b/../b/y"), &real), LR_OK);
    const bool resolved = strcmp(real + strlen(real) - 6, "/a/b/y") == 0;
    lr_free(real);
    CHECK(resolved);
    CHECK(lr_disk_free(in_folder("a")) > 0);
    CHECK_INT(lr_tree_remove(in_folder("a/")), LR_OK);
    CHECK_INT(names_in_folder(), 0);
}

TEST(remove_never_follows_links)
{
    write_text(in_folder("kept"), "1");
    CHECK_INT(lr_dir_make(in_folder("tree/sub")), LR_OK);
    CHECK_INT(lr_dir_make(in_folder("outside")), LR_OK);
    write_text(in_folder("outside/kept"), "2");
    CHECK_INT(symlink(in_folder("outside"), in_folder("tree/sub/folder-link")), 0);
    CHECK_INT(symlink(in_folder("kept"), in_folder("tree/file-link")), 0);
    CHECK_INT(symlink(in_folder("outside"), in_folder("top-link")), 0);
    CHECK_INT(lr_tree_remove(in_folder("tree")), LR_OK);
    CHECK_INT(lr_tree_remove(in_folder("top-link/")), LR_OK);
    check_text(in_folder("kept"), "1");
    check_text(in_folder("outside/kept"), "2");
    CHECK_INT(lr_tree_remove("/"), LR_EINVAL);
    CHECK_INT(lr_tree_remove(""), LR_EINVAL);
    CHECK_INT(lr_tree_remove(in_folder("outside/..")), LR_EINVAL);
    CHECK_INT(lr_tree_remove(in_folder("outside")), LR_OK);
    CHECK_INT(lr_tree_remove(in_folder("kept")), LR_OK);
    CHECK_INT(names_in_folder(), 0);
}

/* Functions that return a block, which is freed here. */
static int read_only(const char *path)
{
    char *data;
    int64_t size;
    const int status = lr_file_read(path, &data, &size);
    if (status == LR_OK)
        lr_free(data);
    return status;
}

static int list_only(const char *path)
{
    char *names;
    int64_t count;
    const int status = lr_dir_list(path, &names, &count);
    if (status == LR_OK)
        lr_free(names);
    return status;
}

static int real_only(const char *path)
{
    char *real;
    const int status = lr_path_real(path, &real);
    if (status == LR_OK)
        lr_free(real);
    return status;
}

TEST(every_allocation_may_fail)
{
    const char *path = in_folder("text"), *other = in_folder("other");
    uint32_t crc;
    FAIL_EACH_ALLOCATION(lr_file_write(path, "text", 4));
    FAIL_EACH_ALLOCATION(read_only(path));
    FAIL_EACH_ALLOCATION(list_only(lr_test_folder));
    FAIL_EACH_ALLOCATION(real_only(path));
    FAIL_EACH_ALLOCATION(lr_file_copy(path, other));
    FAIL_EACH_ALLOCATION(lr_file_crc32c(path, &crc));
    CHECK_INT(names_in_folder(), 2);
    FAIL_EACH_ALLOCATION(lr_file_rename(other, path));
    FAIL_EACH_ALLOCATION(lr_dir_make(other));
    FAIL_EACH_ALLOCATION(lr_tree_remove(other));
    check_text(path, "text");
    CHECK_INT(lr_tree_remove(path), LR_OK);
    CHECK_INT(names_in_folder(), 0);
}

TEST_MAIN()
