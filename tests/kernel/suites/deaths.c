/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Consumers that die, or are interrupted, with a request outstanding at a device of the kernel.
 *
 * modules: ldm; gate
 */
#include <sys/prctl.h>

#include "devices.h"

/* What a child does before it waits for its end; none of it returns before the gate is opened. */
static void wait_in_read(void)
{
	int fd = opened("gate", O_RDWR);
	char byte;

	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_IS(read(fd, &byte, 1), 1);
}

static void wait_in_close(void)
{
	int fd = opened("gate", O_RDWR);

	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_IS(close(fd), 0);
}

static void wait_in_READ(void)
{
	char byte;

	CHECK_IS(read(opened("gate", O_RDONLY), &byte, 1), 1);
}

static void wait_in_ioctl(void)
{
	struct ldm_call call = { .type = LDM_CALL };

	CHECK_IS(ioctl(opened("gate", O_RDWR), LDM_IOC_SEND, &call), 0);
}

static void wait_in_pread(void)
{
	char byte;

	CHECK_IS(pread(opened("blocks", O_RDWR), &byte, 1, 0), 1);
}

static void wait_in_pwrite(void)
{
	CHECK_IS(pwrite(opened("blocks", O_RDWR), "x", 1, 0), 1);
}

static void wait_in_fsync(void)
{
	CHECK_IS(fsync(opened("blocks", O_RDWR)), 0);
}

static void wait_in_poll(void)
{
	int fd = opened("gate", O_RDWR);

	CHECK_IS(write(fd, "hello", 5), 5);
	poll_for_input(fd);
}

static void wait_somewhere_else(void)
{
	CHECK_IS(write(opened("gate", O_RDWR), "hello", 5), 5);
	pause();
}

static void (*const waits_in[])(void) = {
	wait_in_read, wait_in_close, wait_in_READ, wait_in_ioctl, wait_in_pread, wait_in_pwrite, wait_in_fsync, wait_in_poll,
	wait_somewhere_else,
};

#define WAYS (int)(sizeof(waits_in) / sizeof(waits_in[0]))

static pid_t started(void (*wait)(void))
{
	int before = told("held");
	pid_t child = fork();

	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		wait();
		exit(0);
	}
	UNTIL(told("held") == before + 1 && sleeps(child));
	return child;
}

CASE(a_killed_consumer_is_gone_and_its_request_cancelled_wherever_it_waits)
{
	int i;

	for (i = 0; i < WAYS; i++) {
		int before = told("cancelled");
		pid_t child = started(waits_in[i]);

		kill(child, SIGKILL);
		CHECK_IS(ended(child), 256 + SIGKILL);
		UNTIL(told("cancelled") == before + 1);
		UNTIL(told("opened") == told("closed"));
		CHECK_IS(told("held"), 0);
	}
}

CASE(a_consumer_that_ends_by_itself_does_not_wait)
{
	int before = told("cancelled");
	pid_t child = fork();

	if (!child) {
		CHECK_IS(write(opened("gate", O_RDWR), "hello", 5), 5);
		exit(0);
	}
	CHECK_IS(ended(child), 0);
	UNTIL(told("cancelled") == before + 1);
	UNTIL(told("opened") == told("closed"));
}

CASE(many_are_killed_at_once)
{
	pid_t children[60];
	int i, before = told("cancelled");

	for (i = 0; i < 60; i++)
		children[i] = started(waits_in[i % WAYS]);
	for (i = 0; i < 60; i++)
		kill(children[i], SIGKILL);
	for (i = 0; i < 60; i++)
		CHECK_IS(ended(children[i]), 256 + SIGKILL);
	UNTIL(told("cancelled") == before + 60);
	UNTIL(told("opened") == told("closed"));
}

static void do_nothing(int number)
{
	(void)number;
}

static void interruptible(int flags)
{
	struct sigaction action = { .sa_handler = do_nothing, .sa_flags = flags };

	CHECK_IS(sigaction(SIGUSR1, &action, NULL), 0);
}

CASE(a_read_that_a_signal_interrupts_can_be_repeated)
{
	int before;
	pid_t child = fork();

	if (!child) {
		int fd = opened("gate", O_RDWR);
		char byte;

		interruptible(0);
		CHECK_IS(write(fd, "hello", 5), 5);
		CHECK_ERRNO(read(fd, &byte, 1), EINTR);
		READS(fd, "hello");
		exit(0);
	}
	before = told("cancelled");
	UNTIL(told("held") == 1 && sleeps(child));
	kill(child, SIGUSR1);
	UNTIL(sleeps(child));
	keeper("release");
	CHECK_IS(ended(child), 0);
	CHECK_IS(told("cancelled"), before);
}

CASE(a_read_that_a_signal_restarts_goes_on)
{
	pid_t child = fork();

	if (!child) {
		int fd = opened("gate", O_RDWR);

		interruptible(SA_RESTART);
		CHECK_IS(write(fd, "hello", 5), 5);
		READS(fd, "hello");
		exit(0);
	}
	UNTIL(told("held") == 1 && sleeps(child));
	kill(child, SIGUSR1);
	UNTIL(sleeps(child));
	keeper("release");
	CHECK_IS(ended(child), 0);
}

CASE(one_thread_that_execs_ends_the_others_requests)
{
	pid_t child = fork();

	if (!child) {
		in_a_thread((void (*)(int))(void (*)(void))wait_in_read, 0);
		UNTIL(told("held") == 1);
		execl("/bin/true", "true", NULL);
		exit(1);
	}
	CHECK_IS(ended(child), 0);
	UNTIL(told("held") == 0);
	UNTIL(told("opened") == told("closed"));
}

CASE(a_killed_consumer_of_a_request_that_cannot_be_cancelled_is_gone_and_its_close_comes_later)
{
	int fd;
	pid_t child = fork();

	if (!child) {
		fd = opened("stubborn", O_RDWR);
		CHECK_IS(write(fd, "hello", 5), 5);
		READS(fd, "hello");
		exit(0);
	}
	UNTIL(told("held") == 1 && sleeps(child));
	kill(child, SIGKILL);
	CHECK_IS(ended(child), 256 + SIGKILL);
	CHECK_IS(told("held"), 1);
	CHECK_IS(told("opened") - told("closed"), 1);
	keeper("release");
	UNTIL(told("opened") == told("closed"));
}

enum { AT_ONCE = 40 };

static void release(int argument)
{
	(void)argument;
	keeper("release");
}

CASE(files_that_are_closed_while_their_requests_end_leave_nothing)
{
	int fds[AT_ONCE], i, j;
	struct thread *thread;

	for (i = 0; i < 200; i++) {
		for (j = 0; j < AT_ONCE; j++) {
			fds[j] = opened("gate", O_RDWR | O_NONBLOCK);
			CHECK_IS(write(fds[j], "hello", 5), 5);
		}
		thread = in_a_thread(release, 0);
		for (j = 0; j < AT_ONCE; j++)
			close(fds[j]);
		joined(thread);
	}
	UNTIL(told("held") == 0);
	UNTIL(told("opened") == told("closed"));
}

CASE(a_descriptor_that_was_passed_on_outlives_its_opener)
{
	int fd = opened("gate", O_RDWR);
	pid_t child = fork();

	if (!child) {
		CHECK_IS(write(fd, "hello", 5), 5);
		_exit(0);
	}
	CHECK_IS(ended(child), 0);
	CHECK_IS(told("held"), 1);
	keeper("release");
	READS(fd, "hello");
}
