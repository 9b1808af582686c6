// hourhand identity: tell a copy of a database from the database that it was copied from.

import type { Pool } from '../store/db.ts';
import { renewIdentity } from '../store/identity.ts';
import { say } from './say.ts';

export async function newIdentity(pool: Pool): Promise<number> {
  const { id, former } = await pool.$transaction(renewIdentity);
  say(`this database is ${id} from now on${former ? `, no longer ${former}` : ''}`);
  say('set REDIS_PREFIX to one of its own before its processes start; a worker of it that runs takes no more jobs');
  return 0;
}
