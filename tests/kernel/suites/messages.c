/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What read, write, poll and close mean on the file of a message device: the same as on a file of FUSE.
 *
 * modules: ldm; gate
 */
#include "devices.h"

CASE(a_reply_is_read_and_then_the_end_of_file)
{
	int fd = opened("plain", O_RDWR);

	CHECK_IS(write(fd, "hello", 5), 5);
	READS(fd, "hello");
	READS(fd, "");
	READS(fd, "READ");
	READS(fd, "");
}

CASE(a_read_without_a_request_sends_a_READ)
{
	READS(opened("plain", O_RDONLY), "READ");
}

CASE(a_reply_is_read_in_pieces)
{
	int fd = opened("plain", O_RDWR);
	char piece[3];

	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_IS(read(fd, piece, 3), 3);
	CHECK_BYTES(piece, "hel", 3);
	READS(fd, "lo");
	READS(fd, "");
}

CASE(a_vector_of_parts_is_one_request)
{
	int fd = opened("plain", O_RDWR);
	struct iovec parts[] = { { "one ", 4 }, { "two ", 4 }, { "three", 5 } };
	char first[4], rest[100];
	struct iovec rooms[] = { { first, 4 }, { rest, 100 } };

	CHECK_IS(writev(fd, parts, 3), 13);
	CHECK_IS(readv(fd, rooms, 2), 13);
	CHECK_BYTES(first, "one ", 4);
	CHECK_BYTES(rest, "two three", 9);
}

CASE(the_longest_message_is_taken_and_a_longer_one_refused)
{
	int fd = opened("plain", O_RDWR);
	int before = told("calls");
	char *message = calloc(1, LDM_MAX_MESSAGE + 1), *found = malloc(LDM_MAX_MESSAGE + 1);
	ssize_t size = 0, got;

	memset(message, 'm', LDM_MAX_MESSAGE);
	CHECK_IS(write(fd, message, LDM_MAX_MESSAGE), LDM_MAX_MESSAGE);
	while ((got = read(fd, found + size, LDM_MAX_MESSAGE + 1 - size)) > 0)
		size += got;
	CHECK_IS(size, LDM_MAX_MESSAGE);
	CHECK_BYTES(found, message, LDM_MAX_MESSAGE);
	CHECK_ERRNO(write(fd, message, LDM_MAX_MESSAGE + 1), EMSGSIZE);
	CHECK_ERRNO(write(fd, message, huge), EMSGSIZE);
	CHECK_IS(told("calls"), before + 1);
}

CASE(a_write_of_no_bytes_sends_nothing)
{
	int before = told("calls");

	CHECK_IS(write(opened("plain", O_RDWR), "", 0), 0);
	CHECK_IS(told("calls"), before);
}

CASE(a_bad_address_is_refused)
{
	int fd = opened("plain", O_RDWR);
	int before = told("calls");
	char *end = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(end != MAP_FAILED && !munmap(end + 4096, 4096));
	CHECK_ERRNO(write(fd, nowhere, 5), EFAULT);
	CHECK_ERRNO(write(fd, end + 4090, 10), EFAULT);
	CHECK_IS(told("calls"), before);
	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_ERRNO(read(fd, nowhere, 5), EFAULT);
	READS(fd, "hello");
}

CASE(the_error_of_a_plain_handler_is_that_of_the_write)
{
	int fd = opened("plain", O_RDWR);

	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_ERRNO(write(fd, "fail 71", 7), EPROTO);
	READS(fd, "READ");
	CHECK_IS(close(fd), 0);
}

CASE(a_second_write_replaces_a_reply_that_was_not_read)
{
	int fd = opened("plain", O_RDWR);

	CHECK_IS(write(fd, "one", 3), 3);
	CHECK_IS(write(fd, "two", 3), 3);
	READS(fd, "two");
	READS(fd, "");
	CHECK_IS(write(fd, "three", 5), 5);
	CHECK_IS(write(fd, "four", 4), 4);
	READS(fd, "four");
}

CASE(a_write_while_the_last_request_runs_is_refused)
{
	int fd = opened("gate", O_RDWR);

	CHECK_IS(write(fd, "one", 3), 3);
	CHECK_ERRNO(write(fd, "two", 3), EBUSY);
	keeper("release");
	READS(fd, "one");
}

CASE(a_read_waits_for_a_handler_that_runs)
{
	int fd = opened("gate", O_RDWR);
	struct thread *reader;

	CHECK_IS(write(fd, "hello", 5), 5);
	reader = in_a_thread(read_hello, fd);
	UNTIL(waits(reader));
	keeper("release");
	joined(reader);
}

CASE(a_handler_in_a_thread_of_its_own_answers_the_read)
{
	int fd = opened("thread", O_RDWR);

	CHECK_IS(write(fd, "hello", 5), 5);
	READS(fd, "hello");
	READS(fd, "");
	READS(fd, "READ");
}

CASE(a_late_error_is_that_of_the_read_and_told_once)
{
	int fd = opened("gate", O_RDWR);
	char byte;

	CHECK_IS(write(fd, "hello", 5), 5);
	keeper("fail 71");
	CHECK_ERRNO(read(fd, &byte, 1), EPROTO);
	CHECK_IS(write(fd, "hello", 5), 5);
	keeper("release");
	READS(fd, "hello");
	CHECK_IS(close(fd), 0);
}

CASE(a_close_waits_for_the_handler_and_tells_its_error)
{
	int fd = opened("gate", O_RDWR);
	struct thread *closer;

	CHECK_IS(write(fd, "hello", 5), 5);
	closer = in_a_thread(close_with_EPROTO, fd);
	UNTIL(waits(closer));
	keeper("fail 71");
	joined(closer);
}

CASE(a_close_without_waiting_cancels_the_request)
{
	int fd = opened("gate", O_RDWR | O_NONBLOCK);
	int before = told("cancelled");

	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_IS(close(fd), 0);
	UNTIL(told("cancelled") == before + 1);
	UNTIL(told("opened") == told("closed"));
}

CASE(a_request_that_does_not_care_for_cancelling_ends_after_the_close)
{
	int fd = opened("stubborn", O_RDWR | O_NONBLOCK);

	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_IS(close(fd), 0);
	CHECK_IS(told("opened") - told("closed"), 1);
	keeper("release");
	UNTIL(told("opened") == told("closed"));
}

CASE(without_waiting_a_read_says_that_the_reply_is_not_there)
{
	int fd = opened("gate", O_RDWR | O_NONBLOCK);
	char byte;

	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_ERRNO(read(fd, &byte, 1), EAGAIN);
	CHECK_ERRNO(read(fd, &byte, 1), EAGAIN);
	keeper("release");
	UNTIL(ready(fd) & POLLIN);
	READS(fd, "hello");
}

CASE(without_waiting_a_READ_is_sent_and_its_reply_read_later)
{
	int fd = opened("gate", O_RDONLY | O_NONBLOCK);
	char bytes[8];

	CHECK_ERRNO(read(fd, bytes, 4), EAGAIN);
	CHECK_IS(told("held"), 1);
	keeper("release");
	UNTIL(ready(fd) & POLLIN);
	READS(fd, "rrrr");
}

CASE(poll_tells_what_read_and_write_would_do)
{
	int both = opened("gate", O_RDWR), reader = opened("gate", O_RDONLY | O_NONBLOCK);
	char bytes[100];

	CHECK_IS(ready(both), POLLOUT);
	CHECK_IS(ready(reader) & POLLIN, POLLIN);
	CHECK_IS(write(both, "hello", 5), 5);
	CHECK_ERRNO(read(reader, bytes, 4), EAGAIN);
	CHECK_IS(ready(both), 0);
	CHECK_IS(ready(reader), 0);
	keeper("release");
	CHECK_IS(ready(both), POLLIN | POLLOUT);
	CHECK_IS(ready(reader) & POLLIN, POLLIN);
	READS(both, "hello");
	READS(both, "");
	CHECK_IS(ready(both), POLLOUT);
}

CASE(poll_wakes_when_the_reply_comes)
{
	int fd = opened("gate", O_RDWR);
	struct thread *poller;

	CHECK_IS(write(fd, "hello", 5), 5);
	poller = in_a_thread(poll_for_input, fd);
	UNTIL(waits(poller));
	keeper("release");
	joined(poller);
}

CASE(epoll_tells_of_each_reply_once)
{
	int fd = opened("gate", O_RDWR | O_NONBLOCK), queue = epoll_create1(0);
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.fd = fd }, found;
	int i;

	CHECK_IS(epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event), 0);
	for (i = 0; i < 3; i++) {
		CHECK_IS(write(fd, "hello", 5), 5);
		CHECK_IS(epoll_wait(queue, &found, 1, 0), 0);
		keeper("release");
		CHECK_IS(epoll_wait(queue, &found, 1, 10000), 1);
		CHECK_IS(epoll_wait(queue, &found, 1, 0), 0);
		READS(fd, "hello");
		READS(fd, "");
	}
}

CASE(a_file_has_no_offset)
{
	int fd = opened("plain", O_RDWR);
	char byte;

	CHECK_ERRNO(lseek(fd, 0, SEEK_SET), ESPIPE);
	CHECK_ERRNO(pread(fd, &byte, 1, 0), ESPIPE);
	CHECK_ERRNO(pwrite(fd, "x", 1, 0), ESPIPE);
}

CASE(flags_of_a_shell_do_no_harm)
{
	int fd = opened("plain", O_RDWR | O_CREAT | O_TRUNC | O_APPEND);

	CHECK_IS(write(fd, "hello", 5), 5);
	READS(fd, "hello");
}

CASE(open_files_are_independent_consumers)
{
	int one = opened("gate", O_RDWR | O_NONBLOCK), two = opened("plain", O_RDWR), three = opened("plain", O_RDWR);

	CHECK_IS(write(one, "held", 4), 4);
	CHECK_IS(write(two, "two", 3), 3);
	CHECK_IS(write(three, "three", 5), 5);
	READS(two, "two");
	READS(three, "three");
}

CASE(a_duplicate_is_the_same_consumer)
{
	int fd = opened("gate", O_RDWR | O_NONBLOCK), same;
	int before = told("opened");

	same = dup(fd);
	CHECK_IS(told("opened"), before);
	CHECK_IS(write(fd, "hello", 5), 5);
	CHECK_ERRNO(write(same, "hello", 5), EBUSY);
	CHECK_IS(close(fd), 0);
	CHECK_IS(told("held"), 1);
	keeper("release");
	UNTIL(ready(same) & POLLIN);
	READS(same, "hello");
}

CASE(a_reply_that_was_not_read_is_kept_for_the_next_reader_once)
{
	int fd = opened("plain", O_RDWR);

	CHECK_IS(write(fd, "kept", 4), 4);
	CHECK_IS(close(fd), 0);
	fd = opened("plain", O_RDONLY);
	READS(fd, "kept");
	READS(fd, "");
	READS(fd, "READ");
}

CASE(a_late_reply_is_kept_by_the_close_that_waits_for_it)
{
	int fd = opened("thread", O_RDWR);

	CHECK_IS(write(fd, "kept", 4), 4);
	CHECK_IS(close(fd), 0);
	READS(opened("thread", O_RDONLY), "kept");
}

CASE(a_late_error_is_kept_for_the_next_reader)
{
	int fd = opened("gate", O_RDWR);
	char byte;

	CHECK_IS(write(fd, "hello", 5), 5);
	keeper("fail 71");
	CHECK_ERRNO(close(fd), EPROTO);
	CHECK_ERRNO(read(opened("gate", O_RDONLY), &byte, 1), EPROTO);
}

CASE(a_reply_is_not_kept_for_another_session)
{
	int fd = opened("plain", O_RDWR);
	pid_t child;

	CHECK_IS(write(fd, "kept", 4), 4);
	CHECK_IS(close(fd), 0);
	child = fork();
	if (!child) {
		setsid();
		READS(opened("plain", O_RDONLY), "READ");
		exit(0);
	}
	CHECK_IS(ended(child), 0);
	READS(opened("plain", O_RDONLY), "kept");
}

CASE(a_reply_is_not_kept_for_another_user)
{
	int fd = opened("plain", O_RDWR);
	pid_t child;

	CHECK_IS(write(fd, "kept", 4), 4);
	CHECK_IS(close(fd), 0);
	child = fork();
	if (!child) {
		CHECK_IS(chmod(KERNEL "plain", 0666), 0);
		CHECK_IS(setuid(65534), 0);
		READS(opened("plain", O_RDONLY), "READ");
		exit(0);
	}
	CHECK_IS(ended(child), 0);
	READS(opened("plain", O_RDONLY), "kept");
}

CASE(a_reply_of_which_something_was_read_is_not_kept)
{
	int fd = opened("plain", O_RDWR);
	char byte;

	CHECK_IS(write(fd, "kept", 4), 4);
	CHECK_IS(read(fd, &byte, 1), 1);
	CHECK_IS(close(fd), 0);
	READS(opened("plain", O_RDONLY), "READ");
}

CASE(a_kept_reply_is_withdrawn_by_a_writer_that_goes_on)
{
	int fd = opened("plain", O_RDWR), same = dup(fd);

	CHECK_IS(write(fd, "kept", 4), 4);
	CHECK_IS(close(fd), 0);
	READS(same, "kept");
	READS(opened("plain", O_RDONLY), "READ");
}

CASE(the_latest_reply_is_kept)
{
	int i, fd;

	for (i = 0; i < 5; i++) {
		fd = opened("plain", O_RDWR);
		CHECK_IS(dprintf(fd, "kept %d", i), 6);
		CHECK_IS(close(fd), 0);
	}
	READS(opened("plain", O_RDONLY), "kept 4");
	READS(opened("plain", O_RDONLY), "READ");
}

CASE(more_replies_than_are_kept_at_most_make_room_for_new_ones)
{
	int i, fd;

	for (i = 0; i < LDM_MAX_KEPT + 50; i++) {
		pid_t child = fork();

		if (!child) {
			setsid();
			fd = opened("plain", O_RDWR);
			CHECK_IS(write(fd, "kept", 4), 4);
			CHECK_IS(close(fd), 0);
			exit(0);
		}
		CHECK_IS(ended(child), 0);
	}
}

CASE(a_thousand_consumers_at_once_are_answered)
{
	int fds[1000], i;
	char text[20];

	for (i = 0; i < 1000; i++) {
		fds[i] = opened("plain", O_RDWR);
		CHECK(dprintf(fds[i], "message %d", i) > 0);
	}
	for (i = 0; i < 1000; i++) {
		snprintf(text, sizeof(text), "message %d", i);
		READS(fds[i], text);
	}
}

CASE(consumers_on_two_processors_do_not_disturb_each_other)
{
	struct thread *threads[4];
	int i;

	for (i = 0; i < 4; i++)
		threads[i] = in_a_thread(exchange_many, i);
	for (i = 0; i < 4; i++)
		joined(threads[i]);
}
