// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* A module that makes the mistake which its parameter names, and is not loaded then. */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static char *mistake = "none";
module_param(mistake, charp, 0);

static DEFINE_SPINLOCK(one);
static DEFINE_SPINLOCK(two);
static DEFINE_MUTEX(sleeping);

static void take_in_both_orders(void)
{
	spin_lock(&one);
	spin_lock(&two);
	spin_unlock(&two);
	spin_unlock(&one);
	spin_lock(&two);
	spin_lock(&one);
	spin_unlock(&one);
	spin_unlock(&two);
}

static void sleep_under_a_spin_lock(void)
{
	spin_lock(&one);
	mutex_lock(&sleeping);
	mutex_unlock(&sleeping);
	spin_unlock(&one);
}

static void use_after_free(void)
{
	char *memory = kmalloc(32, GFP_KERNEL);

	kfree(memory);
	WRITE_ONCE(*memory, 1);
}

static void lose_memory(void)
{
	void *memory;
	int i;

	for (i = 0; i < 8; i++) {
		memory = kmalloc(3000, GFP_KERNEL);
		OPTIMIZER_HIDE_VAR(memory);
	}
}

static int __init planted_init(void)
{
	if (!strcmp(mistake, "warning"))
		WARN_ON(1);
	else if (!strcmp(mistake, "oops"))
		WRITE_ONCE(*(int *)8, 1);
	else if (!strcmp(mistake, "locks"))
		take_in_both_orders();
	else if (!strcmp(mistake, "sleep"))
		sleep_under_a_spin_lock();
	else if (!strcmp(mistake, "memory"))
		use_after_free();
	else if (!strcmp(mistake, "leak"))
		lose_memory();
	return -ECANCELED;
}
module_init(planted_init);
MODULE_DESCRIPTION("Makes a mistake");
MODULE_LICENSE("GPL");
