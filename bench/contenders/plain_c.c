/* The echo device on the low level of C libfuse, in one thread: the floor for the file path.
 *
 * One file `echo`; each open handle gives back what was last written to it.  Run: plain_c DIRECTORY
 */
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ECHO = 2, CACHE_SECONDS = 300, LONGEST = 1 << 20 };

struct handle {
	size_t length;
	size_t room;
	char *reply;
};

static struct handle *handle_of(const struct fuse_file_info *info)
{
	return (struct handle *)(uintptr_t)info->fh;
}

static struct stat attributes(fuse_ino_t inode)
{
	struct stat found = { .st_ino = inode, .st_nlink = 1 };

	found.st_mode = inode == ECHO ? S_IFREG | 0666 : S_IFDIR | 0755;
	return found;
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
	struct stat found = attributes(inode);

	(void)info;
	fuse_reply_attr(request, &found, CACHE_SECONDS);
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry = {
		.ino = ECHO, .attr = attributes(ECHO), .attr_timeout = CACHE_SECONDS, .entry_timeout = CACHE_SECONDS,
	};

	(void)parent;
	if (strcmp(name, "echo"))
		fuse_reply_err(request, ENOENT);
	else
		fuse_reply_entry(request, &entry);
}

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
	struct handle *handle = calloc(1, sizeof(*handle));

	(void)inode;
	if (!handle) {
		fuse_reply_err(request, ENOMEM);
		return;
	}
	info->fh = (uintptr_t)handle;
	info->direct_io = 1;
	info->nonseekable = 1;
	fuse_reply_open(request, info);
}

static void on_write(fuse_req_t request, fuse_ino_t inode, const char *data, size_t size, off_t offset,
		     struct fuse_file_info *info)
{
	struct handle *handle = handle_of(info);

	(void)inode;
	(void)offset;
	if (size > handle->room) {
		char *larger = size <= LONGEST ? realloc(handle->reply, size) : NULL;

		if (!larger) {
			fuse_reply_err(request, ENOMEM);
			return;
		}
		handle->reply = larger;
		handle->room = size;
	}
	memcpy(handle->reply, data, size);
	handle->length = size;
	fuse_reply_write(request, size);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *info)
{
	struct handle *handle = handle_of(info);
	size_t length = handle->length < size ? handle->length : size;

	(void)inode;
	(void)offset;
	handle->length = 0;
	fuse_reply_buf(request, handle->reply, length);
}

static void on_flush(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
	(void)inode;
	(void)info;
	fuse_reply_err(request, 0);
}

static void on_release(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
	struct handle *handle = handle_of(info);

	(void)inode;
	free(handle->reply);
	free(handle);
	fuse_reply_err(request, 0);
}

static const struct fuse_lowlevel_ops operations = {
	.lookup = on_lookup,
	.getattr = on_getattr,
	.open = on_open,
	.write = on_write,
	.read = on_read,
	.flush = on_flush,
	.release = on_release,
};

int main(int argc, char **argv)
{
	struct fuse_args arguments = FUSE_ARGS_INIT(1, argv);
	struct fuse_session *session;
	int status;

	if (argc != 2)
		return 2;
	session = fuse_session_new(&arguments, &operations, sizeof(operations), NULL);
	if (!session || fuse_session_mount(session, argv[1]))
		return 1;
	status = fuse_session_loop(session);
	fuse_session_unmount(session);
	fuse_session_destroy(session);
	return status ? 1 : 0;
}
