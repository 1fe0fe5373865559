/* test_store_impostor.c: what a false or broken server may do to a client of the store. The client never joins a server that
 * cannot prove the secret, never waits longer than its time, and nothing that it receives does more harm than a lost connection. */
#define _GNU_SOURCE
#include "dist_store.h"

typedef struct impostor impostor;
struct impostor {
    void (*speak)(impostor *p, int fd); /* serves one client; then the connection is closed */
    const char *secret;                 /* that speak uses */
    const void *bytes;                  /* what it sends */
    size_t size;
    int listener, port, served, flipped;
    pthread_t thread;
};

static void *impostor_run(void *context)
{
    impostor *p = context;
    for (int fd; (fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0; close(fd)) {
        p->served++;
        p->speak(p, fd);
    }
    return NULL;
}

static void impostor_start(impostor *p)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    p->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_INT(bind(p->listener, (struct sockaddr *)&a, sizeof a), 0);
    CHECK_INT(listen(p->listener, 16), 0);
    CHECK_INT(getsockname(p->listener, (struct sockaddr *)&a, &size), 0);
    p->port = ntohs(a.sin_port);
    CHECK_INT(lr_thread_start(&p->thread, impostor_run, p), LR_OK);
}

static void impostor_stop(impostor *p)
{
    shutdown(p->listener, SHUT_RDWR); /* ends its accept() */
    pthread_join(p->thread, NULL);
    close(p->listener);
}

/* Connect to it, with the secret "right". */
static int meet(impostor *p, double timeout, lr_store **s)
{
    const lr_store_member who = {.secret = "right", .rank = 0, .world_size = 2};
    return lr_store_connect(s, "127.0.0.1", p->port, &who, timeout);
}

static void say(const impostor *p, int fd)
{
    size_t sent = 0;
    while (sent < p->size) {
        const ssize_t n = send(fd, (const char *)p->bytes + sent, p->size - sent, MSG_NOSIGNAL);
        if (n <= 0)
            return;
        sent += (size_t)n;
    }
}

/* Waits until the client closes. */
static void hear_out(int fd)
{
    char bytes[4096];
    while (recv(fd, bytes, sizeof bytes, 0) > 0)
        ;
}

/* ---- before the verdict ------------------------------------------------------------------------------------------ */
static void speak_bytes(impostor *p, int fd)
{
    say(p, fd);
    hear_out(fd);
}

TEST(another_program_is_recognized)
{
    static const char banner[] =
        "220 mail.example.org ESMTP ready; and a good deal more, as mail servers like to say\r\n";
    impostor p = {.speak = speak_bytes, .bytes = banner, .size = sizeof banner - 1};
    lr_store *s = NULL;
    impostor_start(&p);
    CHECK_INT(meet(&p, 60, &s), LR_EREFUSED);
    CHECK_HAS(lr_last_error(), "not the store of a job");
    impostor_stop(&p);
}

TEST(waiting_for_a_silent_server_ends)
{
    impostor p = {.speak = speak_bytes};
    lr_store *s = NULL;
    impostor_start(&p);
    CHECK_INT(meet(&p, 0.5, &s), LR_ETIMEOUT);
    CHECK_HAS(lr_last_error(), "does not answer");
    impostor_stop(&p);
    CHECK(p.served <= 1);
}

static void speak_part(impostor *p, int fd)
{
    say(p, fd);
}

TEST(a_server_that_closes_is_tried_again)
{
    uint8_t greeting[LR_STORE_GREETING];
    CHECK_INT(lr_store_crypto(), LR_OK);
    lr_store_greeting_pack(greeting);
    for (int greets = 0; greets < 2; greets++) { /* at once, or after a proper greeting */
        impostor p = {.speak = speak_part, .bytes = greeting, .size = greets ? sizeof greeting : 0};
        lr_store *s = NULL;
        impostor_start(&p);
        CHECK_INT(meet(&p, 2, &s), LR_ETIMEOUT);
        impostor_stop(&p);
        CHECK(p.served > 1);
    }
}

/* ---- the verdict ------------------------------------------------------------------------------------------------- */
/* A correct handshake up to the verdict, of which byte `flipped` is changed if that is >= 0. false: the client left. */
static bool handshake(impostor *p, int fd, int status, const char *text)
{
    uint8_t greeting[LR_STORE_GREETING], hello[LR_STORE_HELLO], verdict[LR_STORE_VERDICT];
    lr_store_hello h;
    lr_store_greeting_pack(greeting);
    if (send(fd, greeting, sizeof greeting, MSG_NOSIGNAL) != sizeof greeting ||
        raw_read(fd, hello, sizeof hello) != sizeof hello)
        return false;
    if (!lr_store_hello_unpack(hello, &h, greeting, "right"))
        return false;
    lr_store_verdict_pack(verdict, status, text, strlen(text), greeting, hello, p->secret);
    if (p->flipped >= 0)
        verdict[p->flipped] ^= 1;
    return send(fd, verdict, sizeof verdict, MSG_NOSIGNAL) == sizeof verdict &&
           send(fd, text, strlen(text), MSG_NOSIGNAL) == (ssize_t)strlen(text);
}

static void speak_welcome(impostor *p, int fd)
{
    if (handshake(p, fd, LR_OK, ""))
        hear_out(fd);
}

TEST(a_server_must_prove_the_secret)
{
    static const char *const secrets[] = {NULL, "", "wrong", "righ", "right2"};
    for (size_t i = 0; i < LR_COUNT_OF(secrets); i++) {
        impostor p = {.speak = speak_welcome, .secret = secrets[i], .flipped = -1};
        lr_store *s = NULL;
        impostor_start(&p);
        CHECK_INT(meet(&p, 60, &s), LR_EREFUSED);
        CHECK_HAS(lr_last_error(), "does not prove");
        CHECK(s == NULL);
        impostor_stop(&p);
    }
    impostor p = {.speak = speak_welcome, .secret = "right", .flipped = -1}; /* only the proof differs */
    lr_store *s = NULL;
    impostor_start(&p);
    CHECK_INT(meet(&p, 60, &s), LR_OK);
    lr_store_close(s);
    impostor_stop(&p);
}

static void speak_refusal(impostor *p, int fd)
{
    if (handshake(p, fd, LR_EREFUSED, "so it is"))
        hear_out(fd);
}

TEST(a_verdict_that_was_tampered_with_is_not_believed)
{
    for (int at = 0; at < LR_STORE_VERDICT; at++) {
        impostor p = {.speak = speak_refusal, .secret = "right", .flipped = at};
        lr_store *s = NULL;
        impostor_start(&p);
        /* bytes 4 to 7 are the size of the text: the client may wait for a longer text */
        const int status = meet(&p, at >= 4 && at < 8 ? 0.3 : 60, &s);
        CHECK(status == LR_EREFUSED || (status == LR_ETIMEOUT && at >= 4 && at < 8));
        CHECK(strstr(lr_last_error(), "so it is") == NULL);
        impostor_stop(&p);
    }
}

/* The client's own proof, sent back to it. */
static void speak_echo(impostor *p, int fd)
{
    uint8_t greeting[LR_STORE_GREETING], hello[LR_STORE_HELLO], verdict[LR_STORE_VERDICT] = {0};
    (void)p;
    lr_store_greeting_pack(greeting);
    if (send(fd, greeting, sizeof greeting, MSG_NOSIGNAL) != sizeof greeting ||
        raw_read(fd, hello, sizeof hello) != sizeof hello)
        return;
    memcpy(verdict + sizeof verdict - LR_STORE_PROOF, hello + sizeof hello - LR_STORE_PROOF, LR_STORE_PROOF);
    send(fd, verdict, sizeof verdict, MSG_NOSIGNAL);
    hear_out(fd);
}

TEST(a_proof_cannot_be_sent_back)
{
    impostor p = {.speak = speak_echo};
    lr_store *s = NULL;
    impostor_start(&p);
    CHECK_INT(meet(&p, 60, &s), LR_EREFUSED);
    CHECK_HAS(lr_last_error(), "does not prove");
    impostor_stop(&p);
}

/* ---- replies ----------------------------------------------------------------------------------------------------- */
static void speak_reply(impostor *p, int fd)
{
    uint8_t request[LR_STORE_REQUEST + 1];
    if (!handshake(p, fd, LR_OK, "") || raw_read(fd, request, sizeof request) != sizeof request)
        return;
    say(p, fd);
}

TEST(replies_that_are_none_end_the_connection)
{
    struct {
        lr_store_reply reply;
        size_t cut; /* bytes at the end that are not sent */
    } const wrong[] = {{{.sequence = 1, .status = LR_OK, .size = LR_STORE_VALUE + 1}, 0},
                       {{.sequence = 1, .status = LR_OK, .size = UINT32_MAX}, 0},
                       {{.sequence = 1, .status = LR_EPEER, .size = LR_STORE_TEXT + 1}, 0},
                       {{.sequence = 1, .status = 1}, 0},
                       {{.sequence = 1, .status = INT32_MIN}, 0},
                       {{.sequence = 7, .status = LR_OK}, 0}, /* answers no request */
                       {{.sequence = 1, .status = LR_OK, .size = 1000}, 0},
                       {{.sequence = 1, .status = LR_EINVAL, .size = 10}, 0},
                       {{.sequence = 1, .status = LR_OK}, 1}};
    for (size_t i = 0; i < LR_COUNT_OF(wrong); i++) {
        uint8_t head[LR_STORE_REPLY];
        lr_store_reply_pack(head, &wrong[i].reply);
        impostor p = {
            .speak = speak_reply, .secret = "right", .flipped = -1, .bytes = head, .size = sizeof head - wrong[i].cut};
        lr_store *s = NULL;
        char *value = NULL;
        int64_t size = 0;
        impostor_start(&p);
        CHECK_INT(meet(&p, 60, &s), LR_OK);
        CHECK_INT(lr_store_get(s, "k", 600, &value, &size), LR_EPEER);
        CHECK_HAS(lr_last_error(), "is lost");
        CHECK_INT(lr_store_set(s, "k", "v", 1), LR_EPEER);
        CHECK(value == NULL);
        lr_store_close(s);
        impostor_stop(&p);
    }
}

/* Noise instead of replies: the call ends, whatever its result. */
TEST(noise_for_replies)
{
    for (uint32_t round = 0; round < 100; round++) {
        uint8_t noise[256];
        uint32_t word[4];
        for (uint32_t i = 0; i < sizeof noise; i++) {
            lr_random(7, 1, round, i, word);
            noise[i] = (uint8_t)word[0];
        }
        if (round % 2) /* so that some of it is taken for the beginning of a reply */
            lr_store_reply_pack(noise, &(lr_store_reply){.sequence = round % 4 == 1, .size = noise[0]});
        lr_random(7, 2, round, 0, word);
        impostor p = {.speak = speak_reply, .secret = "right", .flipped = -1, .bytes = noise, .size = word[0] % 256};
        lr_store *s = NULL;
        char *value = NULL;
        int64_t size = 0;
        impostor_start(&p);
        CHECK_INT(meet(&p, 60, &s), LR_OK);
        if (lr_store_get(s, "k", 600, &value, &size) == LR_OK)
            lr_free(value);
        lr_store_close(s);
        impostor_stop(&p);
    }
}

TEST_MAIN()
