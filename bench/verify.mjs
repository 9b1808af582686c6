// How long does verify take, against its recount as one statement?
import { once } from 'node:events';
import { prepare } from './backfill.mjs';
import { median, spread, timed, times } from './databases.mjs';
import { command, openHourhand, serversOf } from './hourhand.mjs';
import { openRival, recount } from './rivals.mjs';

export async function bench(given, { quick, rounds }, { stop, add }) {
  const hours = quick ? 24 : 720;
  const { servers, range } = await prepare(given, hours, false);
  const hourhand = await openHourhand(servers);
  await hourhand.backfill(range);
  await hourhand.idle();
  await hourhand.close();
  const rival = openRival(servers.databaseUrl);
  const [h, r] = [[], []];
  for (let round = 0; round < Number(rounds ?? (quick ? 2 : 5)) && stop.exitCode === undefined; round++) {
    h.push(await timed(() => verified(servers, range)));
    r.push(await timed(() => recount(rival, range)));
  }
  await rival.end();
  if (stop.exitCode !== undefined) return;
  add({
    what: `verify of ${hours} hours, ${((hours * 2_000) / 1e6).toFixed(2)} million calls, the whole command`,
    ratio: `${spread(h.map((ms, i) => ms / r[i]))} the recount as one statement`,
    hourhand: times(h),
    against: `recount ${times(r)}`,
    target: '≤ 1.5 × the recount',
    met: median(h) <= 1.5 * median(r),
  });
}

async function verified(servers, { start, end }) {
  const args = ['verify', '--from', start.toISOString(), '--to', end.toISOString()];
  const [code] = await once(command(serversOf(servers), args, ['ignore', 'inherit']), 'close');
  if (code !== 0) throw new Error(`verify exited ${code}`);
}
