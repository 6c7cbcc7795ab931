/* NVML's ABI, as far as it is asked here, over the figures of a mapped file.
 *
 * figures.py has the layout and builds this as libnvidia-ml.so.1. INFERSCHED_TEST_NVML names the
 * file; without it the driver is "not loaded". Every call is counted, by device where it is of one.
 * With -DNVML_OLD the functions that came with driver 510 are missing.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { DEVICES = 16, PROCESSES = 32, EVENTS = 16, TEXT = 96 };
enum {
  SUCCESS = 0,
  UNINITIALIZED = 1,
  INVALID_ARGUMENT = 2,
  NOT_SUPPORTED = 3,
  NOT_FOUND = 6,
  INSUFFICIENT_SIZE = 7,
  DRIVER_NOT_LOADED = 9,
  TIMEOUT = 10,
  ARGUMENT_VERSION_MISMATCH = 25
};

struct process {
  uint64_t pid, used_bytes;
};
struct event {
  uint64_t type, data;
};
struct device {
  char uuid[TEXT], name[TEXT];
  uint64_t total_bytes, reserved_bytes, other_bytes, told_free_bytes;
  uint64_t slowdowns, ecc_errors, calls, events_written;
  int32_t error, gpu;
  uint32_t present, divided;
  struct event events[EVENTS];
  struct process processes[PROCESSES];
};
struct figures {
  char magic[8];
  uint64_t calls;
  int32_t error;
  uint32_t delay_ms;
  struct device devices[DEVICES];
};
struct event_set {
  uint64_t wanted[DEVICES], taken[DEVICES];
};
struct memory_v1 {
  unsigned long long total, free, used;
};
struct memory_v2 {
  unsigned int version;
  unsigned long long total, reserved, free, used;
};
struct process_info {
  unsigned int pid;
  unsigned long long used;
  unsigned int gpu_instance, compute_instance;
};
struct event_data {
  struct device *device;
  unsigned long long type, data;
  unsigned int gpu_instance, compute_instance;
};

static struct figures *mapped;
static int users;

static int begin(void) {
  if (!mapped || users == 0) return UNINITIALIZED;
  __atomic_fetch_add(&mapped->calls, 1, __ATOMIC_RELAXED);
  if (mapped->delay_ms) {
    struct timespec pause = {mapped->delay_ms / 1000, (mapped->delay_ms % 1000) * 1000000L};
    nanosleep(&pause, NULL);
  }
  return mapped->error;
}

static int begin_on(struct device *device) {
  int error = begin();
  if (error) return error;
  __atomic_fetch_add(&device->calls, 1, __ATOMIC_RELAXED);
  if (!device->present) return device->gpu < 0 ? NOT_FOUND : INVALID_ARGUMENT;
  return device->error;
}

static uint64_t used_bytes(const struct device *device) {
  uint64_t used = device->other_bytes;
  for (int i = 0; i < PROCESSES; i++) {
    if (device->processes[i].pid) used += device->processes[i].used_bytes;
  }
  return used;
}

static uint64_t free_bytes(const struct device *device) {
  uint64_t taken = used_bytes(device) + device->reserved_bytes;
  if (device->told_free_bytes) return device->told_free_bytes;
  return taken < device->total_bytes ? device->total_bytes - taken : 0;
}

int nvmlInitWithFlags(unsigned int flags) {
  (void)flags;
  const char *path = getenv("INFERSCHED_TEST_NVML");
  int file = path ? open(path, O_RDWR) : -1;
  if (file < 0) return DRIVER_NOT_LOADED;
  void *memory = mmap(NULL, sizeof *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return DRIVER_NOT_LOADED;
  mapped = memory; /* a former mapping stays: handles point into it */
  users++;
  int error = begin();
  if (error) users--;
  return error;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
  int error = begin();
  if (users > 0) users--;
  return error;
}

const char *nvmlErrorString(int error) {
  static char text[32];
  snprintf(text, sizeof text, "error %d", error);
  return text;
}

int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
  snprintf(text, size, "550.54.15");
  return begin();
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
  int error = begin();
  if (error) return error;
  *count = 0;
  for (int i = 0; i < DEVICES; i++) {
    *count += mapped->devices[i].present && mapped->devices[i].gpu < 0;
  }
  return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct device **handle) {
  int error = begin();
  if (error) return error;
  for (int i = 0; i < DEVICES; i++) {
    struct device *device = &mapped->devices[i];
    if (device->present && device->gpu < 0 && index-- == 0) {
      *handle = device;
      __atomic_fetch_add(&device->calls, 1, __ATOMIC_RELAXED);
      return device->error;
    }
  }
  return INVALID_ARGUMENT;
}

int nvmlDeviceGetUUID(struct device *device, char *text, unsigned int size) {
  int error = begin_on(device);
  if (!error) snprintf(text, size, "%s", device->uuid);
  return error;
}

int nvmlDeviceGetName(struct device *device, char *text, unsigned int size) {
  int error = begin_on(device);
  if (!error) snprintf(text, size, "%s", device->name);
  return error;
}

int nvmlDeviceGetMemoryInfo(struct device *device, struct memory_v1 *memory) {
  int error = begin_on(device);
  if (error) return error;
  memory->total = device->total_bytes;
  memory->used = used_bytes(device) + device->reserved_bytes;
  memory->free = free_bytes(device);
  return SUCCESS;
}

#ifndef NVML_OLD
int nvmlDeviceGetMemoryInfo_v2(struct device *device, struct memory_v2 *memory) {
  int error = begin_on(device);
  if (error) return error;
  if (memory->version != (sizeof *memory | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
  memory->total = device->total_bytes;
  memory->reserved = device->reserved_bytes;
  memory->used = used_bytes(device);
  memory->free = free_bytes(device);
  return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct device *device, unsigned int *count,
                                            struct process_info *infos) {
  int error = begin_on(device);
  if (error) return error;
  unsigned int room = *count, found = 0;
  for (int i = 0; i < PROCESSES; i++) {
    const struct process *process = &device->processes[i];
    if (!process->pid) continue;
    if (infos && found < room) {
      infos[found] = (struct process_info){(unsigned int)process->pid, process->used_bytes, 0, 0};
    }
    found++;
  }
  *count = found;
  return found > room || (!infos && found) ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetMigMode(struct device *device, unsigned int *current, unsigned int *pending) {
  int error = begin_on(device);
  *current = *pending = device->divided;
  return error;
}
#endif

int nvmlDeviceGetMaxMigDeviceCount(struct device *device, unsigned int *count) {
  *count = 7;
  return begin_on(device);
}

int nvmlDeviceGetMigDeviceHandleByIndex(struct device *gpu, unsigned int slot,
                                        struct device **handle) {
  int error = begin_on(gpu);
  if (error) return error;
  for (int i = 0; i < DEVICES; i++) {
    struct device *device = &mapped->devices[i];
    if (device->present && device->gpu == gpu - mapped->devices && slot-- == 0) {
      *handle = device;
      return SUCCESS;
    }
  }
  return NOT_FOUND;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(struct device *device, unsigned long long *reasons) {
  int error = begin_on(device);
  *reasons = device->slowdowns;
  return error;
}

int nvmlDeviceGetTotalEccErrors(struct device *device, int kind, int since,
                                unsigned long long *count) {
  (void)kind, (void)since;
  int error = begin_on(device);
  *count = device->ecc_errors;
  return error;
}

int nvmlEventSetCreate(struct event_set **set) {
  int error = begin();
  if (!error) *set = calloc(1, sizeof **set);
  return error;
}

int nvmlEventSetFree(struct event_set *set) {
  free(set);
  return begin();
}

int nvmlDeviceGetSupportedEventTypes(struct device *device, unsigned long long *types) {
  *types = 0x1 | 0x2 | 0x8 | 0x10;
  return begin_on(device);
}

int nvmlDeviceRegisterEvents(struct device *device, unsigned long long types,
                             struct event_set *set) {
  int error = begin_on(device);
  if (error) return error;
  if (device->gpu >= 0) return NOT_SUPPORTED;
  set->wanted[device - mapped->devices] = types;
  set->taken[device - mapped->devices] = device->events_written;
  return SUCCESS;
}

int nvmlEventSetWait_v2(struct event_set *set, struct event_data *data, unsigned int timeout_ms) {
  (void)timeout_ms; /* nobody waits here */
  int error = begin();
  if (error) return error;
  for (int i = 0; i < DEVICES; i++) {
    struct device *device = &mapped->devices[i];
    while (set->taken[i] < device->events_written) {
      const struct event *event = &device->events[set->taken[i]++ % EVENTS];
      if (!(event->type & set->wanted[i])) continue;
      *data = (struct event_data){device, event->type, event->data, ~0u, ~0u};
      return SUCCESS;
    }
  }
  return TIMEOUT;
}
