/* test_outlet.c: the launcher's output to readers that keep up, that stall, and that have exited. While a test has replaced standard
 * output, it only collects what is written; it checks that once the real one is back. */
#define _GNU_SOURCE
#include "lr_test.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MUCH = 1 << 18 }; /* more than a pipe holds */

static int saved[2];

/* Make these descriptors standard output and error. */
static void redirect(int out, int error)
{
    (void)fflush(stdout);
    saved[0] = dup(STDOUT_FILENO);
    saved[1] = dup(STDERR_FILENO);
    (void)dup2(out, STDOUT_FILENO);
    (void)dup2(error, STDERR_FILENO);
}

static void restore(void)
{
    (void)dup2(saved[0], STDOUT_FILENO);
    (void)dup2(saved[1], STDERR_FILENO);
    (void)close(saved[0]);
    (void)close(saved[1]);
}

/* Read fd until its end. */
static char received[2 * MUCH + 1];
static size_t receive(int fd)
{
    size_t size = 0;
    ssize_t n;
    while (size < sizeof received - 1 && (n = read(fd, received + size, sizeof received - 1 - size)) > 0)
        size += (size_t)n;
    received[size] = 0;
    return size;
}

static char *much(char letter)
{
    static char text[MUCH + 1];
    memset(text, letter, MUCH);
    return text;
}

/* Writes more than the pipe takes, then reads it while the rest is flushed: no call waits, nothing is lost, the order is kept. */
static void overfill(int read_end, int write_end)
{
    lr_outlet *o = NULL;
    redirect(write_end, write_end);
    int status = lr_outlet_new(&o);
    if (status == LR_OK)
        status = lr_outlet_write(o, STDOUT_FILENO, "first ", 6);
    if (status == LR_OK)
        status = lr_outlet_write(o, STDOUT_FILENO, much('a'), MUCH);
    if (status == LR_OK)
        status = lr_outlet_write(o, STDERR_FILENO, " last", 5);
    int64_t left = -1, after = -1;
    if (status == LR_OK)
        status = lr_outlet_flush(o, 0, &left);
    restore();
    (void)close(write_end);
    CHECK_INT(status, LR_OK);
    CHECK(left > 0 && left < MUCH);
    size_t size = 0;
    CHECK(fcntl(read_end, F_SETFL, O_NONBLOCK) == 0);
    for (int i = 0; i < 100000 && after != 0; i++) {
        ssize_t n;
        while ((n = read(read_end, received + size, sizeof received - 1 - size)) > 0)
            size += (size_t)n;
        CHECK_INT(lr_outlet_flush(o, 0.01, &after), LR_OK);
    }
    lr_outlet_free(o);
    size += receive(read_end) > 0 ? strlen(received) : 0;
    (void)close(read_end);
    CHECK_INT(size, 6 + MUCH + 5);
}

TEST(a_pipe_that_is_not_read_does_not_hold_the_writer)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    overfill(ends[0], ends[1]);
}

TEST(a_socket_that_is_not_read_does_not_hold_the_writer)
{
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    overfill(ends[0], ends[1]);
}

TEST(the_order_is_that_of_the_writes)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    redirect(ends[1], ends[1]);
    lr_outlet *o = NULL;
    int status = lr_outlet_new(&o);
    for (int i = 0; i < 10 && status == LR_OK; i++)
        status = lr_outlet_write(o, 1 + i % 2, &"0123456789"[i], 1);
    restore();
    lr_outlet_free(o);
    (void)close(ends[1]);
    CHECK_INT(status, LR_OK);
    CHECK_INT(receive(ends[0]), 10);
    CHECK_STR(received, "0123456789");
    (void)close(ends[0]);
}

TEST(a_reader_that_is_gone_is_reported_once_and_the_other_stream_goes_on)
{
    void (*const before)(int) = signal(SIGPIPE, SIG_IGN);
    int gone[2], kept[2];
    CHECK(pipe(gone) == 0 && pipe(kept) == 0);
    redirect(gone[1], kept[1]);
    lr_outlet *o = NULL;
    int statuses[5];
    statuses[0] = lr_outlet_new(&o);
    statuses[1] = lr_outlet_write(o, STDOUT_FILENO, much('b'), MUCH);
    statuses[2] = lr_outlet_write(o, STDERR_FILENO, "heard", 5); /* kept, to stay in order */
    (void)close(gone[0]);
    int64_t left = -1;
    statuses[3] = lr_outlet_flush(o, 0, &left);
    char why[256];
    (void)snprintf(why, sizeof why, "%s", lr_last_error());
    statuses[4] = lr_outlet_write(o, STDOUT_FILENO, "nobody", 6);
    restore();
    lr_outlet_free(o);
    (void)close(gone[1]);
    (void)close(kept[1]);
    (void)signal(SIGPIPE, before);
    CHECK_INT(statuses[0], LR_OK);
    CHECK_INT(statuses[1], LR_OK);
    CHECK_INT(statuses[2], LR_OK);
    CHECK_INT(statuses[3], LR_EIO);
    CHECK_STR(why, "cannot write to standard output: Broken pipe");
    CHECK_INT(statuses[4], LR_OK);
    CHECK_INT(left, 0);
    CHECK_INT(receive(kept[0]), 5);
    CHECK_STR(received, "heard");
    (void)close(kept[0]);
}

TEST(a_full_disk_is_an_error)
{
    const int full = open("/dev/full", O_WRONLY);
    CHECK(full >= 0);
    redirect(full, full);
    lr_outlet *o = NULL;
    const int made = lr_outlet_new(&o), status = lr_outlet_write(o, STDOUT_FILENO, "x", 1);
    restore();
    lr_outlet_free(o);
    (void)close(full);
    CHECK_INT(made, LR_OK);
    CHECK_INT(status, LR_EIO);
    CHECK_HAS(lr_last_error(), "No space left on device");
}

TEST(mistakes_and_missing_memory)
{
    lr_outlet *o = NULL;
    CHECK_INT(lr_outlet_new(&o), LR_OK);
    CHECK_INT(lr_outlet_write(o, 0, "x", 1), LR_EINVAL);
    lr_outlet_free(o);
    lr_outlet_free(NULL);

    int ends[2], failures = 0, status = LR_ENOMEM;
    CHECK(pipe(ends) == 0);
    for (int after = 0; status == LR_ENOMEM; after++) {
        redirect(ends[1], ends[1]);
        o = NULL;
        lr_memory_fail(after, 1);
        status = lr_outlet_new(&o);
        if (status == LR_OK)
            status = lr_outlet_write(o, STDOUT_FILENO, much('c'), MUCH);
        lr_memory_fail(-1, 0);
        restore();
        lr_outlet_free(o);
        failures += status == LR_ENOMEM;
    }
    (void)close(ends[0]);
    (void)close(ends[1]);
    CHECK_INT(status, LR_OK);
    CHECK(failures >= 3);
}

TEST_MAIN()
