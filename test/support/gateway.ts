// A gateway of the tests: a connection that is not hourhand's, which writes calls as it likes.

import pg from 'pg';
import type { TestCall } from './hourhand.ts';

type Target = { environment: { DATABASE_URL: string } };

/** A connection of the gateway's own. */
export async function connected({ environment }: Target) {
  const client = new pg.Client({ connectionString: environment.DATABASE_URL, application_name: 'the gateway' });
  client.on('error', () => {}); // its database may be dropped under it
  await client.connect();
  return Object.assign(client, { [Symbol.asyncDispose]: () => client.end() });
}

/** The gateway with a transaction open, which is rolled back in the end if it is still. */
export async function openWriter(target: Target, isolation = 'read committed') {
  const client = await connected(target);
  await client.query(`begin isolation level ${isolation}`);
  const record = async (...calls: TestCall[]) => {
    for (const { user, at } of calls) {
      await client.query(
        `insert into "ModelCall" (id, "userDid", "providerId", model, type, status, "callTime")
         values (gen_random_uuid(), $1, 'openai', 'gpt', 'custom', 'success', $2)`,
        [user, at],
      );
    }
  };
  return {
    query: (sql: string) => client.query(sql),
    record,
    /** As if the hour were still running when it was written: without a mark. */
    async beforeTheEnd(...calls: TestCall[]) {
      await client.query('set local session_replication_role = replica');
      await record(...calls);
      await client.query('set local session_replication_role = origin');
    },
    [Symbol.asyncDispose]: () => client.end(),
  };
}
