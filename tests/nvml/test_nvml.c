/* test_nvml.c: what lorarun reports from NVML's numbers, with a library whose numbers the test sets (fake_nvml.c); ctest puts it
 * on the search path of libraries. A missing or broken library needs a process of its own: test_gpu_fields.lua. */
#include "core/device.h"
#include "lr_test.h"

static void set(const char *name, const char *value)
{
    char key[96];
    snprintf(key, sizeof key, "FAKE_NVML_%s", name);
    if (value != NULL)
        setenv(key, value, 1);
    else
        unsetenv(key);
}

TEST(driver_and_count)
{
    char version[32];
    int cuda = 0, n = 0;
    CHECK_INT(lr_gpu_driver(version, sizeof version, &cuda), LR_OK);
    CHECK_STR(version, "580.65.06");
    CHECK_INT(cuda, 13000);
    CHECK_INT(lr_gpu_driver(version, 4, &cuda), LR_OK);
    CHECK_STR(version, "580");
    set("gpus", "8");
    CHECK_INT(lr_gpu_count(&n), LR_OK);
    CHECK_INT(n, 8);
    set("gpus", NULL);
}

TEST(a_gpu_and_its_load)
{
    lr_gpu g;
    lr_gpu_load load;
    set("used_1", "30000000000");
    set("total_1", "80000000000");
    set("utilization_1", "42");
    set("ecc_1", "7");
    set("major_1", "10");
    CHECK_INT(lr_gpu_describe(1, &g), LR_OK);
    CHECK_STR(g.name, "Fake H100 number 1");
    CHECK_STR(g.uuid, "GPU-00000000-0000-0000-0000-000000000001");
    CHECK_INT(g.major * 10 + g.minor, 100);
    CHECK_INT(g.nvlinks, 18);
    CHECK_INT(g.ecc_uncorrected, 7);
    CHECK_INT(lr_gpu_load_now(1, &load), LR_OK);
    CHECK_INT(load.used_bytes, 30000000000);
    CHECK_INT(load.free_bytes, 50000000000);
    CHECK_INT(load.total_bytes, 80000000000);
    CHECK_INT(load.utilization, 42);
    set("used_1", "31000000000"); /* read again every time */
    CHECK_INT(lr_gpu_load_now(1, &load), LR_OK);
    CHECK_INT(load.used_bytes, 31000000000);
}

TEST(what_a_gpu_refuses_is_not_told)
{
    static const char *const ALL[] = {"nvmlDeviceGetName",
                                      "nvmlDeviceGetUUID",
                                      "nvmlDeviceGetCudaComputeCapability",
                                      "nvmlDeviceGetTotalEccErrors",
                                      "nvmlDeviceGetNvLinkState",
                                      "nvmlDeviceGetMemoryInfo",
                                      "nvmlDeviceGetUtilizationRates",
                                      "nvmlDeviceGetP2PStatus",
                                      "nvmlSystemGetDriverVersion",
                                      "nvmlSystemGetCudaDriverVersion_v2"};
    lr_gpu g;
    lr_gpu_load load;
    char version[32];
    int cuda = 0, peer = 0, nvlink = 0;
    for (size_t i = 0; i < LR_COUNT_OF(ALL); i++)
        set(ALL[i], "3");
    CHECK_INT(lr_gpu_describe(0, &g), LR_OK);
    CHECK_STR(g.name, "");
    CHECK_STR(g.uuid, "");
    CHECK(g.major == -1 && g.minor == -1 && g.nvlinks == -1 && g.ecc_uncorrected == -1);
    CHECK_INT(lr_gpu_load_now(0, &load), LR_OK);
    CHECK(load.used_bytes == -1 && load.free_bytes == -1 && load.total_bytes == -1 && load.utilization == -1);
    CHECK_INT(lr_gpu_link(0, 1, &peer, &nvlink), LR_OK);
    CHECK(peer == -1 && nvlink == -1);
    CHECK_INT(lr_gpu_driver(version, sizeof version, &cuda), LR_OK);
    CHECK_STR(version, "");
    CHECK_INT(cuda, -1);
    for (size_t i = 0; i < LR_COUNT_OF(ALL); i++)
        set(ALL[i], NULL);
}

TEST(errors_name_what_was_asked)
{
    lr_gpu_load load;
    CHECK_INT(lr_gpu_load_now(2, &load), LR_EINVAL);
    CHECK_STR(lr_last_error(), "GPU 2: the machine has 2");
    CHECK_INT(lr_gpu_load_now(-1, &load), LR_EINVAL);
    set("nvmlDeviceGetHandleByIndex_v2", "15");
    CHECK_INT(lr_gpu_load_now(0, &load), LR_EDEVICE);
    CHECK_STR(lr_last_error(), "NVML: opening a GPU: fake error 15");
    set("nvmlDeviceGetHandleByIndex_v2", NULL);
}

TEST(processes)
{
    lr_gpu_process list[2];
    int n = -1;
    CHECK_INT(lr_gpu_processes(0, list, 2, &n), LR_OK);
    CHECK_INT(n, 0);
    set("pid", "4242");
    CHECK_INT(lr_gpu_processes(0, list, 2, &n), LR_OK);
    CHECK_INT(n, 2);
    CHECK(list[0].pid == 4242 && list[0].used_bytes == 70ll << 30);
    CHECK(list[1].pid == 1 && list[1].used_bytes == -1);
    list[1].pid = 99;
    CHECK_INT(lr_gpu_processes(0, list, 1, &n), LR_OK);
    CHECK(n == 2 && list[1].pid == 99);
    set("nvmlDeviceGetComputeRunningProcesses_v3", "4");
    CHECK_INT(lr_gpu_processes(0, list, 2, &n), LR_EDEVICE);
    set("nvmlDeviceGetComputeRunningProcesses_v3", NULL);
    set("pid", NULL);
}

TEST(links)
{
    int peer = -1, nvlink = -1;
    CHECK_INT(lr_gpu_link(0, 1, &peer, &nvlink), LR_OK);
    CHECK(peer == 1 && nvlink == 1);
    set("nvlinks", "0");
    CHECK_INT(lr_gpu_link(0, 1, &peer, &nvlink), LR_OK);
    CHECK(peer == 1 && nvlink == 0);
    set("peer", "0");
    CHECK_INT(lr_gpu_link(0, 1, &peer, &nvlink), LR_OK);
    CHECK(peer == 0 && nvlink == 0);
    CHECK_INT(lr_gpu_link(0, 5, &peer, &nvlink), LR_EINVAL);
    set("nvlinks", NULL);
    set("peer", NULL);
}

/* The GPU whose kernels run on the CPU is the first one here; this NVML does not know a real one. */
TEST(the_number_of_a_device)
{
    int number = -1;
    const int status = lr_gpu_of_device(-1, &number);
    if (lr_device_count(LR_CUDA) == 0)
        CHECK_INT(status, LR_EDEVICE);
    else if (status == LR_OK)
        CHECK_INT(number, 0);
    else
        CHECK_HAS(lr_last_error(), "NVML knows no GPU GPU-");
}

TEST_MAIN()
