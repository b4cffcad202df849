/* SPDX-License-Identifier: GPL-2.0-only */
/* What user.c and user_file.c share: a device in user space that the kernel has open. */
#ifndef LDM_USER_FILE_H
#define LDM_USER_FILE_H

#include "internal.h"

struct user_file {
	spinlock_t lock;		/* of all down to `active` */
	struct list_head calls;		/* that are to be done, in order */
	struct request *doing;		/* the request of the one that is being done */
	bool closing;
	bool active;			/* the work item is queued, or runs and will look at these once more */
	struct work_struct work;	/* does one call after the other; the rest is its own, once opened */
	struct file *file;		/* NULL when it is to be opened (again) */
	bool end_due;			/* of the last reply the end of file was not read */
	enum ldm_kind kind;
	u64 size;
	char name[];			/* container/device */
};

/* Opens the file.  Returns 0 or an error. */
int ldm_user_file_open(struct user_file *user);
void ldm_user_file_close(struct user_file *user);

/*
 * Does one request and leaves the reply in it.  Returns how it ended.
 *
 * The file may have been opened under an instance of the container that is gone, or on a mount that is: then it is
 * opened again, for the next request, and for this one too if it has not reached anybody yet.
 */
int ldm_user_file_send(struct user_file *user, struct request *request);

#endif
