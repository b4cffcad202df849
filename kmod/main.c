// SPDX-License-Identifier: GPL-2.0-only
/* Logical devices of the kernel: see ldm.h for what it does, internal.h for how it is made. */
#include "internal.h"

struct workqueue_struct *ldm_workqueue;
struct workqueue_struct *ldm_threads;

static int __init ldm_init(void)
{
	int status = -ENOMEM;

	ldm_workqueue = alloc_workqueue("ldm", WQ_UNBOUND, 0);
	if (!ldm_workqueue)
		return -ENOMEM;
	ldm_threads = alloc_workqueue("ldm_threads", WQ_UNBOUND, LDM_MAX_THREADS);
	if (!ldm_threads)
		goto workqueue;
	status = ldm_user_init();
	if (status)
		goto threads;
	status = ldm_nodes_init();
	if (!status)
		return 0;
	ldm_user_exit();
threads:
	destroy_workqueue(ldm_threads);
workqueue:
	destroy_workqueue(ldm_workqueue);
	return status;
}

/* Nothing is open and no provider is loaded: what still runs here is on its way out. */
static void __exit ldm_exit(void)
{
	ldm_nodes_exit();
	ldm_devices_exit();
	ldm_user_exit();
	ldm_kept_exit();
	destroy_workqueue(ldm_threads);
	destroy_workqueue(ldm_workqueue);
}

module_init(ldm_init);
module_exit(ldm_exit);
MODULE_DESCRIPTION("Logical devices: the container `kernel`");
MODULE_LICENSE("GPL");
