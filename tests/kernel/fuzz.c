/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * fuzz SEED SECONDS: random system calls on the devices of the kernel.
 *
 * Workers do what comes of the seed, with several threads each, in which the kernel is told to fail the Nth allocation or
 * copy of a call where it can do that (/proc/thread-self/fail-nth).  They are killed at random and begun anew.  What they
 * do is right as long as the kernel lives, has nothing to report, and nothing is left in the end.
 */
#include <dirent.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "ldm.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEVICES "/dev/ldm/kernel"
#define ATTRIBUTES "/sys/class/ldm"

enum { WORKERS = 6, THREADS = 3, FILES = 12, MEMORY = 2 << 20, NAMES = 64 };

static char names[NAMES][256];
static int name_count;
static int files[FILES];	/* of one worker, shared by its threads: open, closed meanwhile, or another one */
static char *memory;		/* MEMORY bytes, then a page that cannot be touched */
static struct {
	unsigned long calls, failures;
} *counted;			/* shared by all processes */
static __thread uint64_t state;
static __thread int fail_nth = -1;

/* splitmix64 */
static uint64_t any(void)
{
	uint64_t z = state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static unsigned int below(unsigned int limit)
{
	return any() % limit;
}

/* A size: often small, sometimes at a limit, seldom anything. */
static uint64_t size(void)
{
	static const uint64_t limits[] = {
		0, 1, 4095, 4096, 4097, LDM_MAX_METADATA, LDM_MAX_METADATA + 1, LDM_MAX_MESSAGE, LDM_MAX_MESSAGE + 1,
		LDM_MAX_DATA, LDM_MAX_DATA + 1, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX,
	};

	switch (below(8)) {
	case 0:
		return limits[below(sizeof(limits) / sizeof(limits[0]))];
	case 1:
		return below(MEMORY);
	case 2:
		return any();
	default:
		return below(200);
	}
}

/* An address: mostly good for that many bytes, sometimes near the end of what is, seldom anything. */
static void *address(void)
{
	switch (below(16)) {
	case 0:
		return NULL;
	case 1:
		return memory + MEMORY - below(100);
	case 2:
		return (void *)any();
	default:
		return memory + below(4096);
	}
}

static int *file(void)
{
	return &files[below(FILES)];
}

static const char *name(void)
{
	return names[below(name_count)];
}

static void say_something(void)
{
	static const char *const words[] = { "hello", "release", "release", "fail 5", "fail 71", "fail x", "" };
	const char *word = words[below(7)];

	memcpy(memory + below(4096), word, strlen(word));
	if (write(*file(), word, strlen(word)) < 0)
		return;
}

static void release(void)
{
	int fd = open(DEVICES "/keeper", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0 && write(fd, "release", 7) < 0)
		any();
	close(fd);
}

static void open_one(void)
{
	static const int flags[] = { O_RDONLY, O_WRONLY, O_RDWR, O_RDWR, O_RDWR };
	int fd = open(name(), flags[below(5)] | (below(4) ? O_NONBLOCK : 0) | O_CLOEXEC | (below(8) ? 0 : O_TRUNC | O_APPEND));

	if (fd >= 0) {
		fd = __atomic_exchange_n(file(), fd, __ATOMIC_ACQ_REL);
		close(fd);
	}
}

static void close_one(void)
{
	close(__atomic_exchange_n(file(), -1, __ATOMIC_ACQ_REL));
}

static void duplicate(void)
{
	int fd = dup(*file());

	if (fd >= 0)
		close(__atomic_exchange_n(file(), fd, __ATOMIC_ACQ_REL));
}

static void read_or_write(void)
{
	int fd = *file(), i;
	struct iovec parts[4];
	long done = 0;

	for (i = 0; i < 4; i++)
		parts[i] = (struct iovec){ address(), below(4) ? below(5000) : size() };
	switch (below(8)) {
	case 0:
		done = read(fd, address(), size());
		break;
	case 1:
		done = write(fd, address(), size());
		break;
	case 2:
		done = pread(fd, address(), size(), size());
		break;
	case 3:
		done = pwrite(fd, address(), size(), size());
		break;
	case 4:
		done = readv(fd, parts, 1 + below(4));
		break;
	case 5:
		done = writev(fd, parts, 1 + below(4));
		break;
	case 6:
		done = preadv2(fd, parts, 1 + below(4), size(), below(32));
		break;
	case 7:
		done = pwritev2(fd, parts, 1 + below(4), size(), below(32));
		break;
	}
	(void)done;
}

static void send_request(void)
{
	struct ldm_call call = {
		.type = below(10) ? 1 + below(6) : any(), .id = below(4), .offset = below(4) ? below(5000) : size(),
		.length = below(4) ? below(5000) : size(), .input = (uintptr_t)address(), .input_size = size(),
		.input_metadata = (uintptr_t)address(), .input_metadata_size = below(3) ? 0 : size(),
		.output = (uintptr_t)address(), .output_size = below(4) ? MEMORY - 4096 : size(),
		.output_metadata = (uintptr_t)address(), .output_metadata_size = size(),
	};

	if (!below(20))
		call.reserved[below(3)] = any();
	ioctl(*file(), below(10) ? LDM_IOC_SEND : LDM_IOC_ABOUT, below(20) ? (void *)&call : address());
}

/* Of any file, by an id that many calls have. */
static void cancel(void)
{
	uint64_t id = below(4);

	ioctl(*file(), LDM_IOC_CANCEL, below(10) ? (void *)&id : address());
}

static void control(void)
{
	int fd = *file();

	switch (below(9)) {
	case 0:
		ioctl(fd, any(), address());
		break;
	case 1:
		ioctl(fd, _IOC(below(4), 0xDE, below(4), below(200)), address());
		break;
	case 2:
		fcntl(fd, F_SETFL, (below(2) ? O_NONBLOCK : 0) | (below(4) ? 0 : O_ASYNC | O_APPEND | O_DIRECT));
		break;
	case 3:
		lseek(fd, size(), below(6));
		break;
	case 4:
		below(2) ? fsync(fd) : fdatasync(fd);
		break;
	case 5:
		if (ftruncate(fd, size()) || fallocate(fd, below(8), size(), size()))
			any();
		break;
	case 6:
		fcntl(fd, F_SETOWN, getpid());
		break;
	case 7:
		fcntl(fd, F_SETSIG, 0);
		break;
	case 8: {
		void *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, below(2) ? MAP_SHARED : MAP_PRIVATE, fd, 0);

		if (mapped != MAP_FAILED)
			munmap(mapped, 4096);
		break;
	}
	}
}

static void wait_for_some(void)
{
	struct pollfd asked[3];
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | (below(2) ? EPOLLET : 0) };
	int i, queue;

	for (i = 0; i < 3; i++)
		asked[i] = (struct pollfd){ .fd = *file(), .events = any() };
	poll(asked, 3, below(20));
	queue = epoll_create1(EPOLL_CLOEXEC);
	for (i = 0; i < 3; i++)
		epoll_ctl(queue, EPOLL_CTL_ADD, asked[i].fd, &event);
	epoll_wait(queue, &event, 1, below(5));
	close(queue);
}

static void splice_some(void)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
		return;
	if (write(ends[1], "hello", 5) == 5)
		splice(ends[0], NULL, *file(), NULL, 1 + below(100), SPLICE_F_NONBLOCK);
	splice(*file(), NULL, ends[1], NULL, 1 + below(100000), SPLICE_F_NONBLOCK);
	sendfile(*file(), *file(), NULL, below(5000));
	close(ends[0]);
	close(ends[1]);
}

static void look(void)
{
	static const char *const attributes[] = { "kind", "size", "consumers", "provider", "takes", "dev", "uevent" };
	char path[600];
	struct stat about;
	int fd;

	snprintf(path, sizeof(path), ATTRIBUTES "/%s/%s", strrchr(name(), '/') + 1, attributes[below(7)]);
	fd = open(path, below(4) ? O_RDONLY : O_WRONLY);
	if (below(4) ? read(fd, memory, 4096) : write(fd, "add", 3))
		any();
	close(fd);
	if (fstat(*file(), &about))
		any();
}

/* Tells the kernel to fail the Nth of what can fail in this thread, or nothing: 0. */
static void fail(unsigned int nth)
{
	char text[12];

	if (fail_nth >= 0 && pwrite(fail_nth, text, snprintf(text, sizeof(text), "%u", nth), 0) < 0)
		any();
}

/* Whether it has failed what it was told to: 0 is what is left of N then. */
static bool failed(void)
{
	char left = '1';

	return fail_nth >= 0 && pread(fail_nth, &left, 1, 0) == 1 && left == '0';
}

static void act(void)
{
	static void (*const actions[])(void) = {
		open_one, open_one, open_one, close_one, duplicate, say_something, say_something, read_or_write, read_or_write,
		read_or_write, send_request, send_request, send_request, cancel, control, wait_for_some, splice_some, look, release,
	};

	bool told = !below(3);

	if (told)
		fail(1 + below(30));
	actions[below(sizeof(actions) / sizeof(actions[0]))]();
	__atomic_add_fetch(&counted->calls, 1, __ATOMIC_RELAXED);
	if (told && failed())
		__atomic_add_fetch(&counted->failures, 1, __ATOMIC_RELAXED);
	fail(0);
}

static void *act_on(void *seed)
{
	state = (uintptr_t)seed;
	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	for (;;)
		act();
	return NULL;
}

static void work(uint64_t seed)
{
	pthread_t thread;
	int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	state = seed;
	memory = mmap(NULL, MEMORY + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED || mprotect(memory + MEMORY, 4096, PROT_NONE))
		exit(1);
	memset(files, -1, sizeof(files));
	if (below(2))
		setsid();
	for (i = 1; i < THREADS; i++)
		pthread_create(&thread, NULL, act_on, (void *)(uintptr_t)any());
	act_on((void *)(uintptr_t)any());
}

static void find_devices(void)
{
	DIR *directory = opendir(DEVICES);
	struct dirent *entry;

	while (directory && (entry = readdir(directory)) && name_count < NAMES)
		if (entry->d_name[0] != '.')
			snprintf(names[name_count++], sizeof(names[0]), DEVICES "/%.200s", entry->d_name);
	if (directory)
		closedir(directory);
}

static pid_t begin_worker(void)
{
	uint64_t seed = any();
	pid_t child = fork();

	if (!child)
		work(seed);
	return child;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	pid_t workers[WORKERS];
	unsigned int killed = 0;
	double end;
	int i;

	if (argc != 3)
		return 2;
	find_devices();
	if (!name_count)
		return 1;
	counted = mmap(NULL, sizeof(*counted), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counted == MAP_FAILED)
		return 1;
	state = strtoull(argv[1], NULL, 0);
	end = now() + atof(argv[2]);
	for (i = 0; i < WORKERS; i++)
		workers[i] = begin_worker();
	while (now() < end) {
		usleep(below(200000));
		i = below(WORKERS);
		kill(workers[i], SIGKILL);
		if (waitpid(workers[i], NULL, 0) != workers[i])
			return 1;
		killed++;
		workers[i] = begin_worker();
	}
	for (i = 0; i < WORKERS; i++)
		kill(workers[i], SIGKILL);
	while (wait(NULL) > 0)
		release();
	release();
	printf("calls %lu, failures %lu, killed %u\n", counted->calls, counted->failures, killed);
	return 0;
}
