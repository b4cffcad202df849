// SPDX-License-Identifier: GPL-2.0-only
/*
 * Devices in user space as the kernel consumes them: opening them, queues of requests, time limits.
 *
 * Each device that is open has one work item, which does one call after the other and may be stuck in one for as long
 * as the container's process wants.  Nobody waits for the work item itself: a call ends by it, by its time limit, or by
 * being cancelled, and what comes of it later is dropped.  The work item keeps the memory, and this module, until it is
 * done.
 */
#include <linux/moduleparam.h>
#include <linux/sched.h>

#include "user_file.h"

static unsigned int timeout = 30;
module_param(timeout, uint, 0644);
MODULE_PARM_DESC(timeout, "seconds that a request of the kernel to user space may take (default 30)");
#define MAX_TIMEOUT 86400u

/* Devices at a time whose calls are under way; further ones wait, within their time limits. */
#define MAX_ACTIVE 256

/* In place of a request's type: the call that opens the file. */
#define OPEN 0

static struct workqueue_struct *workqueue;
static atomic_long_t calls;

struct user_call {
	struct list_head list;
	struct request *request;
	struct delayed_work deadline;
};

static void on_deadline(struct work_struct *work)
{
	struct request *request = container_of(to_delayed_work(work), struct user_call, deadline)->request;

	if (ldm_end_request(request, -ETIMEDOUT))
		ldm_ended(request);
}

static void set_doing(struct user_file *user, struct request *request)
{
	spin_lock(&user->lock);
	user->doing = request;
	spin_unlock(&user->lock);
}

static void do_call(struct user_file *user, struct user_call *call)
{
	struct request *request = call->request;
	bool ends = false;
	int status;

	if (atomic_read(&request->state) == REQUEST_SENT) {
		status = request->public.type == OPEN ? ldm_user_file_open(user) : ldm_user_file_send(user, request);
		ends = ldm_end_request(request, status);
	}
	cancel_delayed_work_sync(&call->deadline);
	set_doing(user, NULL);
	ldm_request_retire(request);
	kfree(call);
	atomic_long_dec(&calls);	/* before anybody is told, who may send the next one */
	if (ends)
		ldm_ended(request);
	ldm_request_put(request);
}

/* Has the work item look at the file.  Queued while it runs it would come once more, after it has freed the file. */
static void activate(struct user_file *user)
{
	lockdep_assert_held(&user->lock);
	if (!user->active)
		queue_work(workqueue, &user->work);
	user->active = true;
}

static struct user_call *next_call(struct user_file *user, bool *closing)
{
	struct user_call *call;

	spin_lock(&user->lock);
	call = list_first_entry_or_null(&user->calls, struct user_call, list);
	if (call) {
		list_del_init(&call->list);
		user->doing = call->request;
	}
	*closing = user->closing;
	user->active = call || *closing;
	spin_unlock(&user->lock);
	return call;
}

static void work(struct work_struct *item)
{
	struct user_file *user = container_of(item, struct user_file, work);
	struct user_call *call;
	bool closing;

	while ((call = next_call(user, &closing)))
		do_call(user, call);
	if (!closing)
		return;
	ldm_user_file_close(user);
	kfree(user);
	module_put(THIS_MODULE);	/* ldm_user_exit() waits for the way out of here */
}

/* As ldm_dispatch(): here it always ends later, or does not begin. */
int ldm_user_send(struct user_file *user, struct request *request)
{
	struct user_call *call = NULL;
	int status = -EAGAIN;

	if (!ldm_count(&calls, 1, LDM_MAX_USER_CALLS))
		goto refuse;
	status = -ENOMEM;
	call = kzalloc(sizeof(*call), GFP_KERNEL);
	if (!call)
		goto uncount;
	call->request = ldm_request_get(request);
	INIT_DELAYED_WORK(&call->deadline, on_deadline);
	status = ldm_request_mark_sent(request);
	if (status)
		goto put;
	queue_delayed_work(ldm_workqueue, &call->deadline, clamp(READ_ONCE(timeout), 1u, MAX_TIMEOUT) * HZ);
	spin_lock(&user->lock);
	list_add_tail(&call->list, &user->calls);
	activate(user);
	spin_unlock(&user->lock);
	return LDM_LATER;

put:
	ldm_request_put(request);
	kfree(call);
uncount:
	atomic_long_dec(&calls);
refuse:
	atomic_set(&request->state, REQUEST_ENDED);
	request->public.status = status;
	return status;
}

static struct user_file *alloc_file(const char *name)
{
	size_t size = strlen(name) + 1;
	struct user_file *user = kzalloc(struct_size(user, name, size), GFP_KERNEL);

	if (!user)
		return NULL;
	spin_lock_init(&user->lock);
	INIT_LIST_HEAD(&user->calls);
	INIT_WORK(&user->work, work);
	memcpy(user->name, name, size);
	return user;
}

/* A container and a device: one slash, and nothing that a path gives another meaning. */
static int check_name(const char *name)
{
	const char *slash = strchr(name, '/');
	const char *device = slash ? slash + 1 : "";
	size_t container_size = slash - name;

	if (!slash || !container_size || !*device || strchr(device, '/') || name[0] == '.' || !strcmp(device, ".") ||
	    !strcmp(device, ".."))
		return -EINVAL;
	return container_size > LDM_MAX_NAME || strlen(device) > LDM_MAX_NAME ? -ENAMETOOLONG : 0;
}

/* One ldm_open_device() that is under way. */
struct opening {
	struct list_head list;
	const char *name;
	pid_t process;
};

static DEFINE_SPINLOCK(openings_lock);
static LIST_HEAD(openings);

/*
 * No file carries the chain on whose behalf it is opened, so that a cycle through user space is not seen as such: each
 * open leads to the next one by the same process.  It ends here, before that process has no thread left.
 */
static int enter(struct opening *opening)
{
	struct opening *other;
	unsigned int same = 0;

	spin_lock(&openings_lock);
	list_for_each_entry(other, &openings, list)
		same += other->process == opening->process && !strcmp(other->name, opening->name);
	if (same < LDM_MAX_USER_OPENS)
		list_add(&opening->list, &openings);
	spin_unlock(&openings_lock);
	return same < LDM_MAX_USER_OPENS ? 0 : -ELOOP;
}

static void leave(struct opening *opening)
{
	spin_lock(&openings_lock);
	list_del(&opening->list);
	spin_unlock(&openings_lock);
}

static int wait_for_open(struct user_file *user)
{
	struct ldm_request *request = ldm_alloc_request(1, OPEN);
	struct ldm_handle handle = { .file = user };
	int status = -ENOMEM;

	if (request)
		status = ldm_send_request(&handle, request, NULL, NULL);
	ldm_free_request(request);
	return status;
}

struct user_file *ldm_user_open(const char *name)
{
	struct opening opening = { .name = name, .process = task_tgid_nr(current) };
	struct user_file *user;
	int status = check_name(name);

	if (status)
		return ERR_PTR(status);
	user = alloc_file(name);
	if (!user)
		return ERR_PTR(-ENOMEM);
	status = enter(&opening);
	if (status) {
		kfree(user);
		return ERR_PTR(status);
	}
	__module_get(THIS_MODULE);	/* the caller's module needs this one: it is not on its way out */
	status = wait_for_open(user);
	leave(&opening);
	if (!status)
		return user;
	ldm_user_close(user);
	return ERR_PTR(status);
}

static struct request *next_to_cancel(struct user_file *user)
{
	struct request *found = NULL;
	struct user_call *call;

	spin_lock(&user->lock);
	if (user->doing && atomic_read(&user->doing->state) == REQUEST_SENT)
		found = ldm_request_get(user->doing);
	list_for_each_entry(call, &user->calls, list)
		if (!found && atomic_read(&call->request->state) == REQUEST_SENT)
			found = ldm_request_get(call->request);
	spin_unlock(&user->lock);
	return found;
}

/* Cancels what is outstanding; the file is closed when the work item is done with it. */
void ldm_user_close(struct user_file *user)
{
	struct request *request;

	while ((request = next_to_cancel(user))) {
		ldm_cancel_request(&request->public);
		ldm_request_put(request);
	}
	spin_lock(&user->lock);
	user->closing = true;
	activate(user);
	spin_unlock(&user->lock);
}

void ldm_user_about(const struct user_file *user, struct ldm_about *about)
{
	const u32 message = BIT(LDM_READ) | BIT(LDM_CALL) | BIT(LDM_FLUSH);
	const u32 block = BIT(LDM_READ) | BIT(LDM_WRITE) | BIT(LDM_FLUSH);

	*about = (struct ldm_about){
		.size = user->size,
		.accepts = user->kind == LDM_BLOCK ? block : message,
		.kind = user->kind,
		.execution = LDM_THREAD,
	};
}

int ldm_user_init(void)
{
	workqueue = alloc_workqueue("ldm_user", WQ_UNBOUND, MAX_ACTIVE);
	return workqueue ? 0 : -ENOMEM;
}

void ldm_user_exit(void)
{
	destroy_workqueue(workqueue);
}
