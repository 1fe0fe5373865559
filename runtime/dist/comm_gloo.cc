// comm_gloo.cc: the mesh of comm_mesh.h over Gloo's TCP transport. The only C++ of lorarun, in a module of its own.
//
// Only Gloo's transport is used: pairs (connections) and unbound buffers (sends and receives between them). Its collectives are
// not, because they end the process if the ranks differ in sizes or a size is zero, cannot be interrupted, and do not say which peer
// they wait for.
//
// Invariants
//   - No exception leaves a function of the table: guard() turns each into a status and a text.
//   - Gloo's thread takes no signals, which are for the program's own threads. A peer that is gone is an error, never a SIGPIPE.
#include "dist/comm_mesh.h"

#include <gloo/transport/context.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/address.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

struct lr_mesh {
    int rank = 0, world_size = 0;
    std::shared_ptr<gloo::transport::Device> device;
    std::shared_ptr<gloo::transport::Context> context;
    std::mutex mutex; // guards what follows: the transfer in progress, for abort()
    gloo::transport::UnboundBuffer *in = nullptr, *out = nullptr;
    bool aborted = false;
    // Waits for a byte of every peer, which no peer sends: when a connection closes, its receive fails, and that is noticed here.
    std::unique_ptr<gloo::transport::UnboundBuffer> vigil;
    char vigil_byte = 0;
};

namespace
{

milliseconds to_milliseconds(double seconds)
{
    const double longest = 1e9; // about thirty years; clocks overflow beyond
    return milliseconds(static_cast<int64_t>((seconds < longest ? seconds : longest) * 1e3));
}

// Does Gloo print ports in network byte order, high byte first? On most machines they are then other numbers.
bool ports_are_swapped()
{
    sockaddr_in probe = {};
    probe.sin_family = AF_INET;
    probe.sin_port = htons(1);
    const gloo::transport::tcp::Address address(reinterpret_cast<const sockaddr *>(&probe), sizeof probe);
    return htons(1) != 1 && address.str().find("]:256") != std::string::npos;
}

// Gloo's text with the right ports, and without the place in its sources that it begins with ("[enforce fail at device.cc:80] "):
// "Connection closed by peer [127.0.0.1]:35328".
void write_reason(char *why, const char *what)
{
    const char *text = *what == '[' ? std::strstr(what, "] ") : nullptr;
    if (text != nullptr)
        what = text + 2;
    std::string reason;
    for (bool swapped = ports_are_swapped(); *what != '\0';) {
        reason += *what++;
        if (!swapped || reason.size() < 2 || reason.compare(reason.size() - 2, 2, "]:") != 0)
            continue;
        char *end = nullptr;
        const unsigned long port = std::strtoul(what, &end, 10);
        if (end != what && port <= 0xffff) {
            reason += std::to_string(ntohs(static_cast<uint16_t>(port)));
            what = end;
        }
    }
    std::snprintf(why, LR_MESH_WHY, "%s", reason.c_str());
}

int explain(char *why, int status, const char *what) noexcept
{
    try {
        write_reason(why, what);
    } catch (...) { // out of memory
        std::snprintf(why, LR_MESH_WHY, "%s", what);
    }
    return status;
}

template <class Function> int guard(char *why, Function function)
{
    try {
        return function();
    } catch (const std::bad_alloc &) {
        return explain(why, LR_MESH_NO_MEMORY, "out of memory");
    } catch (const std::exception &e) {
        return explain(why, LR_MESH_FAILED, e.what());
    } catch (...) {
        return explain(why, LR_MESH_FAILED, "unknown C++ exception");
    }
}

// While it exists, the calling thread and threads that it starts take no signals.
class NoSignals
{
  public:
    NoSignals()
    {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~NoSignals()
    {
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }
    NoSignals(const NoSignals &) = delete;
    NoSignals &operator=(const NoSignals &) = delete;

  private:
    sigset_t before_;
};

// While it exists, the calling thread takes no SIGPIPE; one that its writes raised is discarded at the end.
class NoSigpipe
{
  public:
    NoSigpipe()
    {
        sigset_t pending;
        sigemptyset(&set_);
        sigaddset(&set_, SIGPIPE);
        sigpending(&pending);
        mine_ = sigismember(&pending, SIGPIPE) == 0;
        pthread_sigmask(SIG_BLOCK, &set_, &before_);
    }
    ~NoSigpipe()
    {
        const timespec now = {0, 0};
        if (mine_)
            (void)sigtimedwait(&set_, nullptr, &now);
        pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    }
    NoSigpipe(const NoSigpipe &) = delete;
    NoSigpipe &operator=(const NoSigpipe &) = delete;

  private:
    sigset_t set_, before_;
    bool mine_;
};

// While it exists, the calling thread and threads that it starts are scheduled as batch work. Gloo's thread spins on a lock that
// the thread waiting for it holds; as batch work it does not preempt that thread. On few cores a small transfer then takes a quarter
// of the time.
class BatchPriority
{
  public:
    BatchPriority()
    {
        sched_param batch = {};
        changed_ = pthread_getschedparam(pthread_self(), &policy_, &before_) == 0 && policy_ == SCHED_OTHER &&
                   pthread_setschedparam(pthread_self(), SCHED_BATCH, &batch) == 0;
    }
    ~BatchPriority()
    {
        if (changed_)
            pthread_setschedparam(pthread_self(), policy_, &before_);
    }
    BatchPriority(const BatchPriority &) = delete;
    BatchPriority &operator=(const BatchPriority &) = delete;

  private:
    sched_param before_ = {};
    int policy_ = 0;
    bool changed_ = false;
};

// Close the connection with this local address in programs that this one starts (close-on-exec). Gloo does not, and a child that
// outlives a killed rank would keep its connections open: the other ranks would wait until their time is up.
void close_on_exec(const sockaddr_storage &own)
{
    DIR *folder = opendir("/proc/self/fd");
    if (folder == nullptr)
        return;
    while (const dirent *entry = readdir(folder)) {
        const int fd = std::atoi(entry->d_name); // 0 for "." and ".."
        sockaddr_storage address;
        socklen_t size = sizeof address;
        std::memset(&address, 0, sizeof address);
        if (fd > 2 && getsockname(fd, reinterpret_cast<sockaddr *>(&address), &size) == 0 &&
            std::memcmp(&address, &own, size) == 0)
            (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    (void)closedir(folder);
}

// The buffers of a transfer. abort() knows them while it exists.
class Transfer
{
  public:
    Transfer(lr_mesh &mesh, const lr_mesh_transfer &t) : mesh_(mesh)
    {
        // Gloo only reads what it sends.
        out_ = mesh.context->createUnboundBuffer(const_cast<void *>(t.out), static_cast<size_t>(t.out_size));
        in_ = mesh.context->createUnboundBuffer(t.in, static_cast<size_t>(t.in_size));
        set(in_.get(), out_.get());
    }
    ~Transfer()
    {
        set(nullptr, nullptr);
    }
    Transfer(const Transfer &) = delete;
    Transfer &operator=(const Transfer &) = delete;

    int run(uint64_t tag, const lr_mesh_transfer &t, Clock::time_point deadline)
    {
        {
            const std::lock_guard<std::mutex> lock(mesh_.mutex);
            if (mesh_.aborted)
                return LR_MESH_ABORTED;
        }
        for (int i = 0; i < t.receive_count; i++)
            in_->recv(t.receives[i].peer, tag, static_cast<size_t>(t.receives[i].offset),
                      static_cast<size_t>(t.receives[i].size));
        for (int i = 0; i < t.send_count; i++)
            out_->send(t.sends[i].peer, tag, static_cast<size_t>(t.sends[i].offset),
                       static_cast<size_t>(t.sends[i].size));
        for (int i = 0; i < t.receive_count; i++)
            if (!in_->waitRecv(nullptr, left(deadline)))
                return LR_MESH_ABORTED;
        for (int i = 0; i < t.send_count; i++)
            if (!out_->waitSend(nullptr, left(deadline)))
                return LR_MESH_ABORTED;
        return LR_MESH_OK;
    }

  private:
    static milliseconds left(Clock::time_point deadline)
    {
        const auto rest = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
        return rest > milliseconds::zero() ? rest : milliseconds::zero();
    }
    void set(gloo::transport::UnboundBuffer *in, gloo::transport::UnboundBuffer *out)
    {
        const std::lock_guard<std::mutex> lock(mesh_.mutex);
        mesh_.in = in;
        mesh_.out = out;
    }

    lr_mesh &mesh_;
    std::unique_ptr<gloo::transport::UnboundBuffer> in_, out_;
};

int mesh_open(lr_mesh **out, int rank, int world_size, const char *address, const char *interface, double timeout,
              char *why)
{
    return guard(why, [&] {
        auto mesh = std::make_unique<lr_mesh>();
        mesh->rank = rank;
        mesh->world_size = world_size;
        gloo::transport::tcp::attr attributes;
        if (interface != nullptr)
            attributes.iface = interface;
        else
            attributes.hostname = address;
        {
            const NoSignals signals;
            const BatchPriority priority;
            mesh->device = gloo::transport::tcp::CreateDevice(attributes);
        }
        mesh->context = mesh->device->createContext(rank, world_size);
        // For connecting, which waits five times as long. 0 would mean without limit.
        mesh->context->setTimeout(std::max(to_milliseconds(timeout / 5), milliseconds(1)));
        for (int peer = 0; peer < world_size; peer++)
            if (peer != rank)
                mesh->context->createPair(peer);
        *out = mesh.release();
        return static_cast<int>(LR_MESH_OK);
    });
}

int mesh_address(const lr_mesh *mesh, int peer, void *bytes)
{
    char why[LR_MESH_WHY];
    int size = 0;
    const int status = guard(why, [&] {
        const std::vector<char> address = mesh->context->getPair(peer)->address().bytes();
        if (address.size() > LR_MESH_ADDRESS)
            return static_cast<int>(LR_MESH_FAILED);
        std::memcpy(bytes, address.data(), address.size());
        size = static_cast<int>(address.size());
        return static_cast<int>(LR_MESH_OK);
    });
    return status == LR_MESH_OK ? size : 0;
}

int mesh_connect(lr_mesh *mesh, int peer, const void *bytes, int size, char *why)
{
    const NoSigpipe sigpipe;
    return guard(why, [&] {
        const char *first = static_cast<const char *>(bytes);
        auto &pair = mesh->context->getPair(peer);
        pair->connect(std::vector<char>(first, first + size));
        close_on_exec(gloo::transport::tcp::Address(pair->address().bytes()).getSockaddr());
        return static_cast<int>(LR_MESH_OK);
    });
}

void mesh_rouse(const void *bytes, int size)
{
    char why[LR_MESH_WHY];
    (void)guard(why, [&] {
        const char *first = static_cast<const char *>(bytes);
        const sockaddr_storage address =
            gloo::transport::tcp::Address(std::vector<char>(first, first + size)).getSockaddr();
        const int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const timeval limit = {1, 0};
        if (fd >= 0) {
            (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); // also limits connecting
            (void)connect(fd, reinterpret_cast<const sockaddr *>(&address),
                          address.ss_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
            (void)close(fd);
        }
        return static_cast<int>(LR_MESH_OK);
    });
}

int mesh_transfer(lr_mesh *mesh, uint64_t tag, const lr_mesh_transfer *t, double timeout, char *why)
{
    const auto deadline = Clock::now() + to_milliseconds(timeout);
    const NoSigpipe sigpipe;
    const int status = guard(why, [&] {
        Transfer transfer(*mesh, *t);
        return transfer.run(tag, *t, deadline);
    });
    const std::lock_guard<std::mutex> lock(mesh->mutex);
    if (status != LR_MESH_OK && mesh->aborted)
        return explain(why, LR_MESH_ABORTED, "aborted");
    return status == LR_MESH_FAILED && Clock::now() >= deadline ? static_cast<int>(LR_MESH_TIMEOUT) : status;
}

enum : uint64_t { LOST_TAG = UINT64_MAX, VIGIL_TAG = UINT64_MAX - 1 }; // tags that no transfer has

int mesh_broken(lr_mesh *mesh)
{
    const NoSigpipe sigpipe;
    char why[LR_MESH_WHY];
    return guard(why, [&] {
               if (mesh->vigil == nullptr) {
                   mesh->vigil = mesh->context->createUnboundBuffer(&mesh->vigil_byte, 1);
                   for (int peer = 0; peer < mesh->world_size; peer++)
                       if (peer != mesh->rank)
                           mesh->vigil->recv(peer, VIGIL_TAG, 0, 1);
               }
               mesh->vigil->abortWaitRecv(); // so the wait ends at once, after looking for failures
               (void)mesh->vigil->waitRecv(nullptr, milliseconds(1000));
               return static_cast<int>(LR_MESH_OK);
           }) == LR_MESH_FAILED;
}

void mesh_lost(lr_mesh *mesh, uint8_t *lost)
{
    const NoSigpipe sigpipe;
    char why[LR_MESH_WHY], byte;
    for (int peer = 0; peer < mesh->world_size; peer++)
        if (peer != mesh->rank) // a closed pair refuses; an open one waits for a message that no peer sends
            lost[peer] = guard(why, [&] {
                             const auto buffer = mesh->context->createUnboundBuffer(&byte, 1);
                             buffer->recv(peer, LOST_TAG, 0, 1);
                             return static_cast<int>(LR_MESH_OK);
                         }) == LR_MESH_FAILED;
}

void mesh_abort(lr_mesh *mesh)
{
    const std::lock_guard<std::mutex> lock(mesh->mutex);
    mesh->aborted = true;
    if (mesh->in != nullptr)
        mesh->in->abortWaitRecv();
    if (mesh->out != nullptr)
        mesh->out->abortWaitSend();
}

void mesh_close(lr_mesh *mesh)
{
    char why[LR_MESH_WHY];
    const NoSigpipe sigpipe;
    (void)guard(why, [&] {
        delete mesh;
        return static_cast<int>(LR_MESH_OK);
    });
}

} // namespace

extern "C" __attribute__((visibility("default")))
const lr_mesh_calls lr_mesh_calls_v1 = {LR_MESH_ABI,   mesh_open,   mesh_address, mesh_connect, mesh_rouse,
                                        mesh_transfer, mesh_broken, mesh_lost,    mesh_abort,   mesh_close};
