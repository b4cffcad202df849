/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What a suite in C is made of: CASE(name) { … } and checks, the first of which that fails ends the case. */
#ifndef CASE_H
#define CASE_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct test_case {
	const char *name;
	void (*run)(void);
	struct test_case *next;
};

static struct test_case *test_cases;

#define CASE(id)								\
	static void case_##id(void);						\
	__attribute__((constructor)) static void add_##id(void)			\
	{									\
		static struct test_case added = { #id, case_##id, NULL };	\
										\
		added.next = test_cases;					\
		test_cases = &added;						\
	}									\
	static void case_##id(void)

#define FAIL(...) do {								\
	fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);				\
	fprintf(stderr, __VA_ARGS__);						\
	fputc('\n', stderr);							\
	exit(1);								\
} while (0)

#define CHECK(condition) do {							\
	if (!(condition))							\
		FAIL("not so: %s", #condition);					\
} while (0)

/* CHECK_IS(call, expected): two integers are equal */
#define CHECK_IS(call, expected) do {						\
	long long found_ = (call), expected_ = (expected);			\
										\
	if (found_ != expected_)						\
		FAIL("%s is %lld, not %lld (errno: %s)", #call, found_, expected_, strerror(errno)); \
} while (0)

/* CHECK_ERRNO(call, code): a system call fails with a certain errno */
#define CHECK_ERRNO(call, code) do {						\
	long long found_;							\
										\
	errno = 0;								\
	found_ = (call);							\
	if (found_ != -1 || errno != (code))					\
		FAIL("%s is %lld with %s, not %s", #call, found_, strerror(errno), strerror(code)); \
} while (0)

#define CHECK_BYTES(found, expected, size) do {					\
	if (memcmp(found, expected, size))					\
		FAIL("%s is not %s", #found, #expected);			\
} while (0)

/* UNTIL(condition): it becomes true within a minute, by what another thread, process or the kernel does */
#define UNTIL(condition) do {							\
	int left_ = 60000;							\
										\
	while (!(condition)) {							\
		if (!left_--)							\
			FAIL("never so: %s", #condition);			\
		usleep(1000);							\
	}									\
} while (0)

/* How often something is repeated that is to be repeated `many` times. */
static inline int rounds(int many)
{
	const char *fewer = getenv("FEWER");

	return many / (fewer ? atoi(fewer) : 1);
}

int main(int argc, char **argv)
{
	struct test_case *each;

	for (each = test_cases; each && argc == 2; each = each->next) {
		if (!strcmp(each->name, argv[1])) {
			each->run();
			return 0;
		}
	}
	fprintf(stderr, "no such case\n");
	return 2;
}

#endif
