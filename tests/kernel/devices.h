/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The devices of providers/gate.c, for suites in C, and threads that wait on them. */
#ifndef DEVICES_H
#define DEVICES_H

#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "case.h"
#include "ldm.h"

#define KERNEL "/dev/ldm/kernel/"

/* What no compiler warns of. */
static char *volatile nowhere = (char *)8;
static volatile size_t huge = 1UL << 31;

/* READS(fd, text): one read gives exactly this */
#define READS(fd, text) do {							\
	char found_[4096];							\
	ssize_t size_ = read(fd, found_, sizeof(found_));			\
										\
	if (size_ != (ssize_t)strlen(text) || memcmp(found_, text, size_))	\
		FAIL("read gives %zd bytes: %.*s, not %s (errno: %s)", size_,	\
		     size_ > 0 ? (int)size_ : 0, found_, text, strerror(errno)); \
} while (0)

static inline int opened(const char *device, int flags)
{
	char path[300];
	int fd;

	snprintf(path, sizeof(path), KERNEL "%s", device);
	fd = open(path, flags | O_CLOEXEC, 0666);
	if (fd < 0)
		FAIL("open of %s: %s", path, strerror(errno));
	return fd;
}

/* Tells the keeper something: "release" or "fail N". */
static inline void keeper(const char *what)
{
	int fd = opened("keeper", O_RDWR);
	char number[20];

	CHECK_IS(write(fd, what, strlen(what)), (long long)strlen(what));
	CHECK(read(fd, number, sizeof(number)) > 0);
	close(fd);
}

/* What the keeper counts under a name. */
static inline int told(const char *name)
{
	int fd = opened("keeper", O_RDONLY);
	char text[300] = "", *found;

	CHECK(read(fd, text, sizeof(text) - 1) > 0);
	close(fd);
	found = strstr(text, name);
	CHECK(found);
	return atoi(found + strlen(name));
}

static inline int ready(int fd)
{
	struct pollfd asked = { .fd = fd, .events = POLLIN | POLLOUT };

	CHECK(poll(&asked, 1, 0) >= 0);
	return asked.revents;
}

/* The exit status of a child, or 256 and its signal. */
static inline int ended(pid_t child)
{
	int status;

	CHECK_IS(waitpid(child, &status, 0), child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

/* -- threads */

struct thread {
	pthread_t thread;
	void (*run)(int argument);
	int argument;
	pid_t id;
};

static inline void *run_thread(void *context)
{
	struct thread *thread = context;

	__atomic_store_n(&thread->id, syscall(SYS_gettid), __ATOMIC_RELEASE);
	thread->run(thread->argument);
	return NULL;
}

static inline struct thread *in_a_thread(void (*run)(int), int argument)
{
	struct thread *thread = calloc(1, sizeof(*thread));

	thread->run = run;
	thread->argument = argument;
	CHECK_IS(pthread_create(&thread->thread, NULL, run_thread, thread), 0);
	return thread;
}

static inline void joined(struct thread *thread)
{
	CHECK_IS(pthread_join(thread->thread, NULL), 0);
	free(thread);
}

/* Whether a task sleeps. */
static inline bool sleeps(pid_t id)
{
	char path[60], state = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", id);
	file = fopen(path, "r");
	if (!file)
		return false;
	if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
		state = 0;
	fclose(file);
	return state == 'S' || state == 'D';
}

static inline bool waits(struct thread *thread)
{
	pid_t id = __atomic_load_n(&thread->id, __ATOMIC_ACQUIRE);

	return id && sleeps(id);
}

static inline void read_hello(int fd)
{
	READS(fd, "hello");
}

static inline void close_with_EPROTO(int fd)
{
	CHECK_ERRNO(close(fd), EPROTO);
}

static inline void poll_for_input(int fd)
{
	struct pollfd asked = { .fd = fd, .events = POLLIN };

	CHECK_IS(poll(&asked, 1, 20000), 1);
	CHECK_IS(asked.revents, POLLIN);
}

static inline void exchange_many(int number)
{
	char text[40];
	int i, fd;

	for (i = 0; i < rounds(2000); i++) {
		fd = opened("plain", O_RDWR);
		snprintf(text, sizeof(text), "%d of thread %d", i, number);
		CHECK_IS(write(fd, text, strlen(text)), (long long)strlen(text));
		READS(fd, text);
		close(fd);
	}
}

#endif
