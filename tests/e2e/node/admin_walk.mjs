// Walks every administrative resource with the official SDK: made, read, listed over pages, changed, ended, and the
// error of what is gone. Prints, for each resource, the steps that did as they should; throws where one did not.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.BASE_URL,
  apiKey: process.env.API_KEY,
  adminAPIKey: process.env.ADMIN_KEY,
  maxRetries: 0,
});
const organization = client.admin.organization;
const { projects, users, groups, roles, invites } = organization;
const walked = {};

const step = (resource, name) => (walked[resource] ??= []).push(name);

async function ids(pages, id = (row) => row.id) {
  const found = [];
  for await (const row of pages) found.push(id(row));
  assert.equal(new Set(found).size, found.length);
  return found;
}

async function gone(resource, call) {
  await assert.rejects(call, (error) => error instanceof OpenAI.NotFoundError && error.status === 404);
  step(resource, "error");
}

async function walkProjects() {
  const made = [];
  for (const name of ["a", "b", "c"]) made.push((await projects.create({ name })).id);
  step("projects", "create");
  assert.equal((await projects.retrieve(made[0])).name, "a");
  assert.equal((await projects.update(made[0], { name: "z" })).name, "z");
  step("projects", "update");
  assert.deepEqual((await ids(projects.list({ limit: 1 }))).slice(0, 3), made.toReversed());
  step("projects", "page");
  assert.equal((await projects.archive(made[2])).status, "archived");
  assert.ok(!(await ids(projects.list())).includes(made[2]));
  step("projects", "archive");
  await gone("projects", () => projects.retrieve("proj_nobody"));
  return made[0];
}

async function walkKeys(project_id) {
  const admin = organization.adminAPIKeys;
  const made = await admin.create({ name: "ci", expires_in_seconds: 3600 });
  assert.ok(made.value.startsWith("sk-og-admin-"));
  assert.equal((await admin.retrieve(made.id)).expires_at, made.created_at + 3600);
  assert.ok((await ids(admin.list({ limit: 1 }))).includes(made.id));
  assert.ok((await admin.delete(made.id)).deleted);
  await gone("admin_api_keys", () => admin.retrieve(made.id));

  const accounts = projects.serviceAccounts;
  const account = await accounts.create(project_id, { name: "bot" });
  const own = await accounts.apiKeys.create(account.id, { project_id, name: "second" });
  const keys = projects.apiKeys;
  const listed = await ids(keys.list(project_id, { limit: 1 }));
  assert.deepEqual(listed, [own.id, account.api_key.id]);
  const found = await keys.retrieve(own.id, { project_id });
  assert.deepEqual([found.owner.service_account.id, found.last_used_at], [account.id, null]);
  const changed = await keys.update(own.id, { project_id, expires_in_seconds: 60, scopes: ["model.read"] });
  assert.ok(changed.expires_at);
  assert.ok((await keys.delete(own.id, { project_id })).deleted);
  await gone("projects.api_keys", () => keys.retrieve(own.id, { project_id }));
  assert.equal((await accounts.update(account.id, { project_id, name: "robot" })).name, "robot");
  assert.equal((await accounts.retrieve(account.id, { project_id })).role, "member");
  assert.deepEqual(await ids(accounts.list(project_id)), [account.id]);
  assert.ok((await accounts.delete(account.id, { project_id })).deleted);
  await gone("projects.service_accounts", () => accounts.retrieve(account.id, { project_id }));
}

async function walkPolicies(project_id) {
  const limits = projects.rateLimits;
  for (const model of ["*", "demo/*"]) {
    const set = await limits.updateRateLimit(`rl-${model}`, { project_id, max_requests_per_1_minute: 9 });
    assert.deepEqual([set.model, set.max_requests_per_1_minute], [model, 9]);
  }
  assert.deepEqual(await ids(limits.listRateLimits(project_id, { limit: 1 })), ["rl-*", "rl-demo/*"]);
  await gone("projects.rate_limits", () => limits.updateRateLimit("none", { project_id }));
  const models = projects.modelPermissions;
  const body = { mode: "allow_list", model_ids: ["demo/*"] };
  assert.deepEqual((await models.update(project_id, body)).model_ids, ["demo/*"]);
  assert.equal((await models.retrieve(project_id)).mode, "allow_list");
  assert.ok((await models.delete(project_id)).deleted);
  await gone("projects.model_permissions", () => models.retrieve("proj_nobody"));
  const type = "zero_data_retention";
  assert.equal((await organization.dataRetention.update({ retention_type: type })).type, type);
  assert.equal((await organization.dataRetention.retrieve()).type, type);
  assert.equal((await projects.dataRetention.update(project_id, { retention_type: type })).type, type);
  assert.equal((await projects.dataRetention.retrieve(project_id)).type, type);
  await gone("projects.data_retention", () => projects.dataRetention.retrieve("proj_nobody"));
}

async function walkSpending(project_id) {
  const monthly = { currency: "USD", interval: "month" };
  const limit = projects.spendLimit;
  await limit.update(project_id, { threshold_amount: 12_345, ...monthly });
  assert.equal((await limit.retrieve(project_id)).threshold_amount, 12_345);
  assert.ok((await limit.delete(project_id)).deleted);
  await gone("projects.spend_limit", () => limit.retrieve(project_id));
  assert.equal((await organization.spendLimit.update({ threshold_amount: 7, ...monthly })).threshold_amount, 7);
  assert.equal((await organization.spendLimit.retrieve()).threshold_amount, 7);
  assert.ok((await organization.spendLimit.delete()).deleted);
  await gone("spend_limit", () => organization.spendLimit.retrieve());
  const notification_channel = { type: "email", recipients: ["ops@example.com"] };
  const said = { notification_channel, ...monthly };
  const alerts = projects.spendAlerts;
  const made = [];
  for (const cents of [100, 200]) made.push((await alerts.create(project_id, { threshold_amount: cents, ...said })).id);
  assert.deepEqual(await ids(alerts.list(project_id, { limit: 1, order: "asc" })), made);
  const [id] = made;
  assert.equal((await alerts.update(id, { project_id, threshold_amount: 150, ...said })).threshold_amount, 150);
  assert.equal((await alerts.retrieve(id, { project_id })).threshold_amount, 150);
  assert.ok((await alerts.delete(id, { project_id })).deleted);
  await gone("projects.spend_alerts", () => alerts.retrieve(id, { project_id }));
}

async function walkPeople(project_id) {
  // OpenAI has people come by invitation alone; the gateway's own route adds one.
  const added = await fetch(`${process.env.BASE_URL}/organization/users`, {
    method: "POST",
    headers: { authorization: `Bearer ${process.env.ADMIN_KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ email: "ada@example.com", role: "reader" }),
  });
  assert.equal(added.status, 200);
  const user = await projects.users.create(project_id, { email: "ada@example.com", role: "member" });
  assert.equal((await projects.users.retrieve(user.id, { project_id })).role, "member");
  assert.equal((await projects.users.update(user.id, { project_id, role: "owner" })).role, "owner");
  assert.deepEqual(await ids(projects.users.list(project_id)), [user.id]);
  assert.equal((await users.update(user.id, { role: "owner" })).role, "owner");
  assert.ok((await ids(users.list({ limit: 1 }))).includes((await users.retrieve(user.id)).id));
  const invite = await invites.create({ email: "bob@example.com", role: "reader" });
  assert.equal((await invites.retrieve(invite.id)).status, "pending");
  assert.deepEqual(await ids(invites.list({ limit: 1 })), [invite.id]);
  assert.ok((await invites.delete(invite.id)).deleted);
  await gone("invites", () => invites.retrieve(invite.id));
  return user.id;
}

async function walkRoles(project_id, user_id) {
  const group = await groups.create({ name: "ml" });
  assert.equal((await groups.update(group.id, { name: "ai" })).name, "ai");
  assert.equal((await groups.retrieve(group.id)).name, "ai");
  assert.deepEqual(await ids(groups.list({ limit: 1 })), [group.id]);
  await groups.users.create(group.id, { user_id });
  assert.equal((await groups.users.retrieve(user_id, { group_id: group.id })).id, user_id);
  assert.deepEqual(await ids(groups.users.list(group.id)), [user_id]);
  const role = await roles.create({ role_name: "reads", permissions: ["api.projects.read"] });
  assert.equal((await roles.update(role.id, { description: "d" })).description, "d");
  assert.equal((await roles.retrieve(role.id)).name, "reads");
  assert.ok((await ids(roles.list({ limit: 1 }))).includes(role.id));
  for (const [assigned, id, name] of [[users.roles, user_id, "user_id"], [groups.roles, group.id, "group_id"]]) {
    await assigned.create(id, { role_id: role.id });
    assert.ok((await ids(assigned.list(id))).includes(role.id));
    assert.equal((await assigned.retrieve(role.id, { [name]: id })).id, role.id);
    assert.ok((await assigned.delete(role.id, { [name]: id })).deleted);
  }
  const local = await projects.roles.create(project_id, { role_name: "own", permissions: ["api.api_keys.read"] });
  assert.equal((await projects.roles.update(local.id, { project_id, description: "d" })).description, "d");
  assert.equal((await projects.roles.retrieve(local.id, { project_id })).name, "own");
  assert.ok((await ids(projects.roles.list(project_id))).includes(local.id));
  await projects.groups.create(project_id, { group_id: group.id, role: local.id });
  assert.equal((await projects.groups.retrieve(group.id, { project_id })).group_id, group.id);
  assert.deepEqual(await ids(projects.groups.list(project_id), (row) => row.group_id), [group.id]);
  assert.ok((await projects.groups.delete(group.id, { project_id })).deleted);
  await gone("projects.groups", () => projects.groups.retrieve(group.id, { project_id }));
  for (const [assigned, id, name] of [
    [projects.users.roles, user_id, "user_id"],
    [projects.groups.roles, group.id, "group_id"],
  ]) {
    await assigned.create(id, { project_id, role_id: local.id });
    assert.ok((await ids(assigned.list(id, { project_id }))).includes(local.id));
    assert.equal((await assigned.retrieve(local.id, { project_id, [name]: id })).id, local.id);
    assert.ok((await assigned.delete(local.id, { project_id, [name]: id })).deleted);
  }
  assert.ok((await projects.roles.delete(local.id, { project_id })).deleted);
  await gone("projects.roles", () => projects.roles.retrieve(local.id, { project_id }));
  assert.ok((await roles.delete(role.id)).deleted);
  await gone("roles", () => roles.retrieve(role.id));
  assert.ok((await groups.users.delete(user_id, { group_id: group.id })).deleted);
  await gone("groups.users", () => groups.users.retrieve(user_id, { group_id: group.id }));
  assert.ok((await groups.delete(group.id)).deleted);
  await gone("groups", () => groups.retrieve(group.id));
}

async function walkTheEnd(project_id, user_id) {
  assert.ok((await projects.users.delete(user_id, { project_id })).deleted);
  await gone("projects.users", () => projects.users.retrieve(user_id, { project_id }));
  assert.ok((await users.delete(user_id)).deleted);
  await gone("users", () => users.retrieve(user_id));
  const types = new Set(await ids(organization.auditLogs.list({ limit: 5 }), (row) => `${row.type} ${row.id}`));
  for (const type of ["project.created", "role.created", "group.deleted", "user.deleted"]) {
    assert.ok([...types].some((entry) => entry.startsWith(type)), type);
  }
  step("audit_logs", "page");
  const stranger = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "x", adminAPIKey: "sk-og-x", maxRetries: 0 });
  await assert.rejects(
    () => stranger.admin.organization.projects.list(),
    (error) => error instanceof OpenAI.AuthenticationError && error.code === "invalid_api_key",
  );
}

const project_id = await walkProjects();
await walkKeys(project_id);
await walkPolicies(project_id);
await walkSpending(project_id);
const user_id = await walkPeople(project_id);
await walkRoles(project_id, user_id);
await walkTheEnd(project_id, user_id);
console.log(JSON.stringify(walked));
